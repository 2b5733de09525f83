"""Strategies: they choose the examples that the next epochs train on, and their weights."""

STRATEGIES = {
    "adv-glister": "robustcords.strategies.adv_glister:AdvGLISTERStrategy",
    "adv-gradmatch": "robustcords.strategies.adv_gradmatch:AdvGradMatchStrategy",
    "glister": "robustcords.strategies.glister:GLISTER",
    "gradmatch": "robustcords.strategies.gradmatch:GradMatch",
    "random": "robustcords.strategies.random:RandomSubset",
}
