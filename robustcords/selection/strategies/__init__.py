"""Strategies: each selects the examples of the next epochs, and their weights."""

STRATEGIES = {
    "adv-craig": "robustcords.selection.strategies.adv_craig:AdvCRAIGStrategy",
    "adv-glister": "robustcords.selection.strategies.adv_glister:AdvGLISTERStrategy",
    "adv-gradmatch": "robustcords.selection.strategies.adv_gradmatch:AdvGradMatchStrategy",
    "el2n": "robustcords.selection.strategies.el2n:EL2NStrategy",
    "fixed": "robustcords.selection.strategies.fixed:FixedSubset",
    "glister": "robustcords.selection.cords.glister:GLISTER",
    "gradmatch": "robustcords.selection.cords.gradmatch:GradMatch",
    "importance": "robustcords.selection.strategies.importance:ImportanceSampling",
    "infobatch": "robustcords.selection.strategies.infobatch:InfoBatch",
    "loss": "robustcords.selection.strategies.by_loss:LossStrategy",
    "random": "robustcords.selection.strategies.random:RandomSubset",
    "rcs": "robustcords.selection.strategies.rcs:RCSStrategy",
}
