"""What an attack computes and keeps: no gradient of a parameter, and one step's graph at a time."""

import gc
import json
import weakref
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from robustcords.attacks import ATTACKS
from robustcords.attacks.base import input_gradient
from robustcords.attacks.pgd import PGD
from robustcords.config import registry
from robustcords.losses.mart import MART
from robustcords.losses.objective import Objective, cross_entropy_of
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

COUNT, CLASSES, CONVOLUTIONS = 24, 11, 2
NOISE = Noise(5, torch.arange(COUNT))
THREAT = ThreatModel(epsilon=0.1)
STEPS = {"outlier": 1, "robust": 2, "boundary": 3}


@pytest.fixture
def problem():
    """A network in training mode, images, and labels that it gives to two in three of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)]
        model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))
        x = torch.rand(COUNT, 3, 16, 16)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::3] = (y[::3] + 1) % CLASSES
    return model.train(), x, y


def each_attack(name):
    return registry.find("attack", ATTACKS[name])(THREAT, name=name)


def bullet():
    """Bullet-Train in the middle of a training, so that there are examples of all three kinds."""
    effort = Bullet(steps=STEPS)
    effort.load_state_dict({"reference": 0.5})
    return effort


def textbook(model, x, y, steps=1, kept=None):
    """The attack as it is often written; where there is a list to keep losses in, their graphs outlive the steps."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=kept is not None)
        if kept is not None:
            kept.append(loss)
        x = (x + 0.01 * x.grad.sign()).clamp(0, 1)


class Gradients(TorchDispatchMode):
    """Keeps which gradients every backward kernel is asked for, and the sizes of all matrix products.

    Attributes:
        masks: kernel -> (input, weight, bias) of each call.
        products: (rows, columns), the smaller first: a linear layer's weight gradient has its weight's sizes.
    """

    def __init__(self):
        super().__init__()
        self.masks, self.products = {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        if "output_mask" in names:
            self.masks.setdefault(func.overloadpacket.__name__, []).append(tuple(args[names.index("output_mask")]))
        if func is torch.ops.aten.mm.default:
            self.products.add(tuple(sorted(result.shape)))
        return result

    def of_weights(self):
        asked = {name for name, masks in self.masks.items() if any(any(mask[1:]) for mask in masks)}
        return asked | ({"linear"} if (CLASSES, 64) in self.products else set())


def check_only_images(seen, model, passes):
    assert seen.of_weights() == set()
    assert len(seen.masks["convolution_backward"]) == passes * CONVOLUTIONS, "not all backward kernels were seen"
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_textbook_attack_asks_for_all_of_them(problem):
    with Gradients() as seen:
        textbook(*problem)
    assert seen.of_weights() == {"convolution_backward", "native_batch_norm_backward", "linear"}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_computes_no_gradients_of_parameters(problem, name, precision):
    model, x, y = problem
    attack = each_attack(name)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), Gradients() as seen:
        attack(model, x, cross_entropy_of(y), NOISE)
    check_only_images(seen, model, attack.num_gradient_steps)


@pytest.mark.parametrize("loss", [TRADES(), MART()], ids=["trades", "mart"])
def test_neither_do_training_examples(problem, loss):
    model, x, y = problem
    with Gradients() as seen:
        attack_batch(model, x, y, NOISE, attack=PGD(THREAT, steps=3), loss=loss)
    check_only_images(seen, model, 3)
    with Gradients() as seen:
        counts = attack_batch(model, x, y, NOISE, attack=PGD(THREAT), loss=loss, effort=bullet()).counts
    assert min(counts.values()) > 0
    check_only_images(seen, model, max(STEPS.values()))


def test_a_gradient_on_its_own_computes_none_either(problem):
    model, x, y = problem
    with Gradients() as seen:
        input_gradient(model.eval(), cross_entropy_of(y), x)
    check_only_images(seen, model, 1)


def test_a_compiled_backward_pass_has_none(problem):
    """Such a pass is one node to autograd: what is in it was settled when it was compiled."""
    name = "pgd"  # `Attack` sees to it for all of them
    model, x, y = problem
    masks = []

    def backward(graph, _):
        convolution = torch.ops.aten.convolution_backward.default
        masks.append({tuple(node.args[-1]) for node in graph.graph.nodes if node.target is convolution})
        return make_boxed_func(graph.forward)

    compiler = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)
    torch._dynamo.reset()
    expected = each_attack(name)(model, x, cross_entropy_of(y), NOISE)
    model.compile(backend=compiler)
    found = each_attack(name)(model, x, cross_entropy_of(y), NOISE)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert masks == [{(True, False, False)}]
    F.cross_entropy(model(x), y).backward()
    assert all(mask[1:] == (True, True) for mask in masks[-1]), "training needs them"
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch._dynamo.reset()


def test_parameters_are_trained_or_not_as_before(problem):
    model, x, y = problem
    model[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]

    def fail(logits):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        each_attack("pgd")(model, x, Objective(fail), NOISE)
    each_attack("pgd")(model, x, cross_entropy_of(y), NOISE)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


class Held:
    """Something that lives as long as what refers to it."""

    def __init__(self, tensor=None):
        self.tensor = tensor


def graphs_at_forwards(model, action):
    """Returns, for each forward, how many earlier graphs and tensors that they saved are still there as it begins."""
    nodes, saved, found = [], [], []

    def pack(tensor):
        held = Held(tensor)
        saved.append(weakref.ref(held))
        return held

    def before(_, __):
        found.append(tuple(sum(each() is not None for each in refs) for refs in (nodes, saved)))

    def after(_, __, logits):
        if logits.grad_fn is not None:
            witness = Held()
            nodes.append(weakref.ref(witness))
            logits.grad_fn.metadata["witness"] = witness

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    gc.disable()  # what only the cycle collector would free is not free in time
    try:
        with saved_tensors_hooks(pack, lambda held: held.tensor):
            action()
    finally:
        gc.enable()
        for hook in hooks:
            hook.remove()
    assert nodes
    assert saved
    return found


@pytest.mark.parametrize("kind", [*ATTACKS, "trades", "bullet"])
def test_a_steps_graph_is_gone_before_the_next_forward(problem, kind):
    model, x, y = problem
    if kind in ATTACKS:
        attack = each_attack(kind)
        found = graphs_at_forwards(model, lambda: attack(model, x, cross_entropy_of(y), NOISE))
        assert found[: attack.num_gradient_steps] == [(0, 0)] * attack.num_gradient_steps
        assert found.count((0, 0)) == len(found) <= (4 if kind == "kim" else attack.num_gradient_steps), (
            "whose points are forwards"
        )
    else:
        attack, effort = PGD(THREAT, steps=3), bullet() if kind == "bullet" else None
        made = partial(attack_batch, model, x, y, NOISE, attack=attack, loss=TRADES(), effort=effort)
        found = graphs_at_forwards(model, made)
        assert found == [(0, 0)] * (1 + 3 if kind == "trades" else 1 + max(STEPS.values()) + 1)


def test_graphs_that_stay_are_seen(problem):
    found = graphs_at_forwards(problem[0], lambda: textbook(*problem, steps=3, kept=[]))
    assert [nodes for nodes, _ in found] == [0, 1, 2]
    assert 0 == found[0][1] < found[1][1] < found[2][1]


def peak_bytes(action, folder):
    """Returns the most bytes of tensors and kernels' scratch space that there are at once, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    first = min(changes, key=lambda change: change["Ev Idx"])
    return max(change["Total Allocated"] for change in changes) - first["Total Allocated"] + first["Bytes"]


@pytest.mark.parametrize("loss", [None, TRADES()], ids=["attack", "trades"])
def test_ten_steps_need_the_memory_of_one(problem, loss, tmp_path):
    model, x, y = problem

    def peak(steps):
        attack = PGD(THREAT, steps=steps)
        if loss is None:
            return peak_bytes(lambda: attack(model, x, cross_entropy_of(y), NOISE), tmp_path)
        return peak_bytes(lambda: attack_batch(model, x, y, NOISE, attack=attack, loss=loss), tmp_path)

    one, ten = peak(1), peak(10)
    assert one > 16 * COUNT * 14 * 14 * 4, "less than one layer's activations"
    assert ten <= 1.1 * one


def test_memory_that_grows_is_seen(problem, tmp_path):
    one, three = (peak_bytes(lambda n=n: textbook(*problem, steps=n, kept=[]), tmp_path) for n in (1, 3))
    assert three > 2 * one
