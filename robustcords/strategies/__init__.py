"""Strategies: they choose the examples that the next epochs train on, and their weights."""

STRATEGIES = {
    "adv-craig": "robustcords.strategies.adv_craig:AdvCRAIGStrategy",
    "adv-glister": "robustcords.strategies.adv_glister:AdvGLISTERStrategy",
    "adv-gradmatch": "robustcords.strategies.adv_gradmatch:AdvGradMatchStrategy",
    "el2n": "robustcords.strategies.el2n:EL2NStrategy",
    "glister": "robustcords.strategies.glister:GLISTER",
    "gradmatch": "robustcords.strategies.gradmatch:GradMatch",
    "loss": "robustcords.strategies.by_loss:LossStrategy",
    "random": "robustcords.strategies.random:RandomSubset",
}
