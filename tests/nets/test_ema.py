"""A teacher is the moving average of every tensor of its student, in fp32, and no part of the objective that has it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTModel

from bigssl.nets.chance import dropout
from bigssl.nets.chance.attention import attention_by_sample
from bigssl.nets.ema import Ema
from bigssl.nets.progress import CosineRamp, Progress

AT = Progress(3, 10)


class Student(nn.Module):
    """Tied weights, a frozen layer, a scale of one element, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tied = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
        self.tied.weight = self.first.weight
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(self.drop(self.norm(self.tied(self.first(x))))) * self.scale
        return out


def disturb(module: nn.Module) -> None:
    """Every parameter and every buffer becomes another."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor += torch.rand(tensor.shape).to(tensor.dtype) if tensor.is_floating_point() else 1


@pytest.mark.parametrize("momentum", [0.9, CosineRamp(0.2, 1.0), 0.0, 1.0])
def test_every_parameter_is_the_average_in_float64(momentum: Any) -> None:
    student = Student()
    teacher = Ema(student, momentum)
    want = {name: value.double() for name, value in student.named_parameters()}
    for step in range(5):
        disturb(student)
        m = momentum(Progress(step, 10)) if callable(momentum) else momentum
        want = {name: m * want[name] + (1 - m) * value.detach().double() for name, value in student.named_parameters()}
        teacher.update(Progress(step, 10))
    got = dict(teacher.module.named_parameters())
    assert got.keys() == want.keys() and "frozen.weight" in got and "scale" in got
    for name, value in want.items():
        torch.testing.assert_close(got[name].double(), value, rtol=3e-7, atol=3e-7, msg=name)
    assert teacher.module.first.weight is teacher.module.tied.weight  # moved once, not twice


def test_statistics_are_the_teachers_own_and_other_buffers_the_students() -> None:
    student = Student()
    student.register_buffer("table", torch.zeros(3))
    teacher = Ema(student, 0.9)
    before = {name: value.clone() for name, value in teacher.module.named_buffers()}
    disturb(student)
    teacher.update(AT)
    assert before.keys() == {"table", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    for name, value in teacher.module.named_buffers():
        assert torch.equal(value, student.table if name == "table" else before[name]), name
    teacher.module(torch.rand(6, 5))
    assert not torch.equal(teacher.module.norm.running_mean, before["norm.running_mean"])


def test_a_teacher_is_a_network_of_its_own_in_fp32() -> None:
    student = Student().bfloat16()
    student.first.weight.use_muon = True  # what others hang on a parameter is not the teacher's
    teacher = Ema(student, 0.9)
    mine, theirs = dict(teacher.module.named_parameters()), dict(student.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == torch.float32 and not value.requires_grad and value.is_leaf
        assert value.data_ptr() != theirs[name].data_ptr() and torch.equal(value, theirs[name].detach().float())
        assert not hasattr(value, "use_muon")
    disturb(student)
    assert all(not torch.equal(value, theirs[name].detach().float()) for name, value in mine.items())


def test_a_teacher_moves_to_a_device_and_stays_fp32() -> None:
    teacher = Ema(Student(), 0.9)
    teacher.apply(lambda tensor: tensor.double())
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}
    teacher.apply(lambda tensor: tensor.to("meta", torch.bfloat16) if tensor.is_floating_point() else tensor.to("meta"))
    tensors = [*teacher.module.parameters(), *teacher.module.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}


def test_a_copy_of_both_stays_a_pair() -> None:
    """What `copy.deepcopy` makes of an objective: its teacher follows the copy, not the original."""
    student = Student()
    other, teacher = copy.deepcopy((student, Ema(student, 0.0)))
    disturb(student)
    teacher.update(AT)
    assert teacher.student is other and torch.equal(teacher.module.scale, other.scale)


def test_a_compiled_student_has_a_compiled_teacher() -> None:
    student = Student()
    student.norm.compile()
    module = Ema(student, 0.9).module
    assert module.norm._compiled_call_impl is not None and module.first._compiled_call_impl is None


def test_a_teacher_drops_nothing() -> None:
    """Neither units, nor attention, nor layers; while its BatchNorm normalises by the batch."""
    config = ConvNextConfig(num_stages=1, hidden_sizes=[8], depths=[8], patch_size=4, drop_path_rate=0.9,
                            layer_scale_init_value=1.0)  # fmt: skip
    vit = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
                    patch_size=4, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)  # fmt: skip
    pixels, seeds = torch.rand(4, 3, 8, 8), torch.arange(4) * 12345
    for model in (ConvNextModel(config), ViTModel(vit, add_pooling_layer=False)):
        attention_by_sample(model.train(), "backbones.image")
        module = dropout.by_sample(Ema(model, 0.9).module)
        with dropout.seeded(seeds), torch.no_grad():
            found = module(pixel_values=pixels).last_hidden_state
        with torch.no_grad():
            calm = copy.deepcopy(module).eval()(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(found, calm)
    rows = torch.rand(6, 5)
    norm = Ema(Student(), 0.9).module.norm
    torch.testing.assert_close(norm(rows).mean(0), torch.zeros(5), rtol=0, atol=1e-5)


def test_the_ramp_is_half_a_cosine() -> None:
    """BYOL's 1 − (1 − τ)(cos(πk/K) + 1)/2."""
    ramp = CosineRamp(0.996, 1.0)
    values = [ramp(Progress(step, 8)) for step in range(9)]
    assert values[0] == pytest.approx(0.996) and values[4] == pytest.approx(0.998) and values[8] == 1.0
    assert values == pytest.approx([1 - 0.004 * (math.cos(math.pi * k / 8) + 1) / 2 for k in range(9)])


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan"), lambda at: 1.01])
def test_a_momentum_that_is_none_is_refused(momentum: Any) -> None:
    with pytest.raises(ValueError, match="momentum .*; allowed: 0 to 1"):
        Ema(Student(), momentum).update(AT)


def test_a_student_in_slices_is_refused_not_passed_over() -> None:
    """What ZeRO-3 leaves of a parameter outside a gather is empty: also of one that would broadcast."""
    student = Student()
    teacher = Ema(student, 0.9)
    student.scale.data = torch.empty(0)
    with pytest.raises(RuntimeError, match="in slices"):
        teacher.update(AT)
