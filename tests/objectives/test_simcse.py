"""SimCSE against its definition, and where there would be nothing to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_runs import Progress

from bigssl.config.errors import ConfigError
from bigssl.data.loading.loader import SEEDS
from bigssl.nets.chance import dropout
from bigssl.objectives.simcse import Simcse

AT = Progress(0, 10)


def test_the_loss_is_that_of_its_definition_in_loops(objective: Any) -> None:
    task = objective(Simcse, "simcse", temperature=0.3)
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 5, 8, dtype=torch.float64)
    total = 0.0
    for ones, others in ((z1, z2), (z2, z1)):
        for i in range(5):
            cosines = [float(ones[i] @ other / ones[i].norm() / other.norm()) / 0.3 for other in others]
            total += float(torch.tensor(cosines, dtype=torch.float64).logsumexp(0)) - cosines[i]
    found = task.compare({"view1": z1.float(), "view2": z2.float()}, AT)
    assert found.total.item() == pytest.approx(total / 10, rel=1e-5)
    assert found.blind == pytest.approx(torch.log(torch.tensor(5.0)).item())


def test_views_that_would_be_the_same_are_refused(objective: Any) -> None:
    with pytest.raises(ConfigError, match=r"objective.keep: value 1.0 .* without dropout"):
        objective(Simcse, "simcse", keep=1.0)
    objective(Simcse, "simcse", keep=1.0, leave_out=0.1)
    objective(Simcse, "simcse", keep=1.0, dropping=True)


def test_dropout_alone_tells_views_apart(objective: Any, batch: Any) -> None:
    task = objective(Simcse, "simcse", keep=1.0, dropping=True)
    data = batch(task)
    assert torch.equal(data["view1"]["input_ids"], data["view2"]["input_ids"])
    with dropout.seeded(data[SEEDS]):
        found = task.embed(data)
    assert not torch.isclose(found["view1"], found["view2"]).all(1).any()
    task.eval()
    found = task.embed(data)
    assert torch.equal(found["view1"], found["view2"])
