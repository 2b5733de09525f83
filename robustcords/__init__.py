"""Adversarial training on small, periodically re-selected subsets.

What a program needs is here by name, and imported when it is first asked for:

    from robustcords import MART, PGD, SubsetSelector, ThreatModel, Trainer
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The one list of public names: type checkers read it as it stands, and `_MODULES` is made of it.
if TYPE_CHECKING:
    from robustcords.attacks.atas import ATAS as ATAS
    from robustcords.attacks.base import Attack as Attack
    from robustcords.attacks.base import CleanLogits as CleanLogits
    from robustcords.attacks.fgsm import FGSM as FGSM
    from robustcords.attacks.kim import Kim as Kim
    from robustcords.attacks.n_fgsm import NFGSM as NFGSM
    from robustcords.attacks.pgd import PGD as PGD
    from robustcords.config.schema import ComponentConfig as ComponentConfig
    from robustcords.data.augmentations.after_crop_flip import AfterCropFlip as AfterCropFlip
    from robustcords.data.augmentations.base import Augmentation as Augmentation
    from robustcords.data.augmentations.base import AugmentationConfig as AugmentationConfig
    from robustcords.data.augmentations.crop_flip import CropFlip as CropFlip
    from robustcords.data.augmentations.crop_flip import CropFlipConfig as CropFlipConfig
    from robustcords.data.augmentations.cutmix import CutMix as CutMix
    from robustcords.data.augmentations.cutout import Cutout as Cutout
    from robustcords.data.augmentations.geometry import Geometry as Geometry
    from robustcords.data.augmentations.mixing import Mixing as Mixing
    from robustcords.data.augmentations.mixing import MixingConfig as MixingConfig
    from robustcords.data.augmentations.mixup import MixUp as MixUp
    from robustcords.data.augmentations.none import NoAugmentation as NoAugmentation
    from robustcords.data.augmentations.rand_augment import RandAugment as RandAugment
    from robustcords.data.augmentations.resized_crop import ResizedCrop as ResizedCrop
    from robustcords.data.augmentations.trivial_augment import TrivialAugment as TrivialAugment
    from robustcords.data.base import DataConfig as DataConfig
    from robustcords.data.base import DataSource as DataSource
    from robustcords.data.base import Splits as Splits
    from robustcords.data.digits import Digits as Digits
    from robustcords.data.images import Images as Images
    from robustcords.data.images import ImageSet as ImageSet
    from robustcords.data.split import stratified_split as stratified_split
    from robustcords.evaluation.attacks.autoattack import AutoAttackEvaluation as AutoAttackEvaluation
    from robustcords.evaluation.attacks.base import EvaluationAttack as EvaluationAttack
    from robustcords.evaluation.attacks.base import EvaluationAttackConfig as EvaluationAttackConfig
    from robustcords.evaluation.attacks.base import Radii as Radii
    from robustcords.evaluation.attacks.cw import CarliniWagnerEvaluation as CarliniWagnerEvaluation
    from robustcords.evaluation.attacks.pgd import PGDEvaluation as PGDEvaluation
    from robustcords.evaluation.config import EvaluationConfig as EvaluationConfig
    from robustcords.evaluation.evaluate import evaluate as evaluate
    from robustcords.evaluation.results import Evaluation as Evaluation
    from robustcords.evaluation.results import Measurement as Measurement
    from robustcords.experiments.run import run as run
    from robustcords.losses.base import Loss as Loss
    from robustcords.losses.base import LossConfig as LossConfig
    from robustcords.losses.context import LossContext as LossContext
    from robustcords.losses.context import Moment as Moment
    from robustcords.losses.grad_align import GradAlign as GradAlign
    from robustcords.losses.mart import MART as MART
    from robustcords.losses.nuat import NuAT as NuAT
    from robustcords.losses.objective import Objective as Objective
    from robustcords.losses.sat import SAT as SAT
    from robustcords.losses.standard import Standard as Standard
    from robustcords.losses.trades import TRADES as TRADES
    from robustcords.methods.adversarial import AdversarialTraining as AdversarialTraining
    from robustcords.methods.awp import AWP as AWP
    from robustcords.methods.base import Batch as Batch
    from robustcords.methods.base import Method as Method
    from robustcords.methods.base import MethodConfig as MethodConfig
    from robustcords.methods.base import Step as Step
    from robustcords.methods.base import StepReport as StepReport
    from robustcords.methods.efforts.base import Effort as Effort
    from robustcords.methods.efforts.base import EffortConfig as EffortConfig
    from robustcords.methods.efforts.base import Kinds as Kinds
    from robustcords.methods.efforts.base import Plan as Plan
    from robustcords.methods.efforts.batch import AdversarialBatch as AdversarialBatch
    from robustcords.methods.efforts.batch import attack_batch as attack_batch
    from robustcords.methods.efforts.bullet import Bullet as Bullet
    from robustcords.methods.efforts.curriculum import Curriculum as Curriculum
    from robustcords.methods.efforts.fat import FAT as FAT
    from robustcords.methods.efforts.ramp import Ramp as Ramp
    from robustcords.methods.efforts.uniform import Uniform as Uniform
    from robustcords.methods.fast_bat import FastBAT as FastBAT
    from robustcords.methods.free import Free as Free
    from robustcords.methods.wrapper import StepAround as StepAround
    from robustcords.methods.wrapper import Wrapper as Wrapper
    from robustcords.methods.wrapper import WrapperConfig as WrapperConfig
    from robustcords.models.base import ModelSource as ModelSource
    from robustcords.models.resnet import ResNet as ResNet
    from robustcords.recipe.recipe import Recipe as Recipe
    from robustcords.recipe.recipe import load_recipe as load_recipe
    from robustcords.rng import Noise as Noise
    from robustcords.rng import derive as derive
    from robustcords.rng import generator as generator
    from robustcords.runtime.session import Session as Session
    from robustcords.selection.base import PlainStrategy as PlainStrategy
    from robustcords.selection.base import SelectionContext as SelectionContext
    from robustcords.selection.base import Strategy as Strategy
    from robustcords.selection.base import StrategyConfig as StrategyConfig
    from robustcords.selection.gradient_based import AdversarialStrategy as AdversarialStrategy
    from robustcords.selection.gradient_based_config import AdversarialConfig as AdversarialConfig
    from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients as AdversarialGradients
    from robustcords.selection.gradients.factors import Gradients as Gradients
    from robustcords.selection.gradients.factors import LastLayerGradients as LastLayerGradients
    from robustcords.selection.observer import LastLosses as LastLosses
    from robustcords.selection.observer import Observer as Observer
    from robustcords.selection.selector import Subset as Subset
    from robustcords.selection.selector import SubsetSelector as SubsetSelector
    from robustcords.selection.strategies.adv_craig import AdvCRAIGStrategy as AdvCRAIGStrategy
    from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy as AdvGLISTERStrategy
    from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy as AdvGradMatchStrategy
    from robustcords.selection.strategies.by_loss import LossStrategy as LossStrategy
    from robustcords.selection.strategies.el2n import EL2NStrategy as EL2NStrategy
    from robustcords.selection.strategies.importance import ImportanceSampling as ImportanceSampling
    from robustcords.selection.strategies.infobatch import InfoBatch as InfoBatch
    from robustcords.selection.strategies.random import RandomSubset as RandomSubset
    from robustcords.selection.strategies.rcs import RCSStrategy as RCSStrategy
    from robustcords.storage.run_directory import RunDirectory as RunDirectory
    from robustcords.threats.base import ThreatModel as ThreatModel
    from robustcords.threats.l0 import L0 as L0
    from robustcords.threats.l1 import L1 as L1
    from robustcords.threats.l2 import L2 as L2
    from robustcords.threats.linf import Linf as Linf
    from robustcords.training.callbacks.base import Callback as Callback
    from robustcords.training.callbacks.base import CallbackContext as CallbackContext
    from robustcords.training.callbacks.base import EpochEnd as EpochEnd
    from robustcords.training.callbacks.validation import Validation as Validation
    from robustcords.training.config import TrainConfig as TrainConfig
    from robustcords.training.trainer import Trainer as Trainer

__version__ = "0.2.0"

_IMPORT = re.compile(r"^    from (\S+) import (\w+) as \2$", re.MULTILINE)

_MODULES = {name: module for module, name in _IMPORT.findall(Path(__file__).read_text(encoding="utf-8"))}
"""A public name to the module that has it."""

if not TYPE_CHECKING:  # a type checker would take a list that it cannot read for an empty one
    __all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports a public name (PEP 562): the command line's help would wait seconds for torch otherwise."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """Returns the public names, imported or not."""
    return sorted({*globals(), *_MODULES})
