"""What the bench measures, and the file that it writes."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest
import torch
from inception_fused.bench import cases, job, results
from torch import nn

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE


class TestCases:
    def test_photographs(self) -> None:
        images = cases.photographs(6)
        assert torch.equal(images, cases.photographs(6))
        assert torch.equal(images[:2], cases.photographs(2))
        assert images.shape == (6, 3, 224, 224)
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))
        assert images.std(dim=(1, 2, 3)).min() > 0.5
        assert images.min() >= -2.2
        assert images.max() <= 2.7

    def test_calibration_sets_the_statistics_of_the_batch(self) -> None:
        conv, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        x = torch.randn(4, 3, 9, 9)
        model = cases.calibrate(nn.Sequential(conv, norm), x)
        values = conv(x)
        torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)))
        assert norm.momentum == 0.1
        assert not any(m.training for m in model.modules())

    @pytest.mark.parametrize("name", GOOGLENET)
    def test_counted_operations_are_the_plans(self, name: str) -> None:
        case = cases.find(name)
        size = GOOGLENET_SIZE[name]
        with torch.no_grad():
            counted = job._begin(case, case.build(), 3).flops
        assert counted == 2 * lower(GOOGLENET[name]).macs(3, size, size)

    def test_chain_counts_as_its_nine_modules(self) -> None:
        case = cases.find("chain")
        with torch.no_grad():
            counted = job._begin(case, case.build(), 1).flops
        macs = (
            lower(s).macs(1, size, size)
            for s, size in zip(GOOGLENET.values(), GOOGLENET_SIZE.values(), strict=True)
        )
        assert counted == 2 * sum(macs)

    def test_building_twice_gives_the_same_weights(self) -> None:
        first, second = (cases.find("5a").build().state_dict() for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_own_model(self, tmp_path: Path) -> None:
        file = tmp_path / "net.py"
        file.write_text(
            "import torch\n"
            "def both(): return torch.nn.Conv2d(2, 1, 1), torch.arange(18.).reshape(1, 2, 3, 3)\n"
            "def wrong(): return 3\n"
        )
        case = cases.find(f"{file}:both")
        assert torch.equal(
            case.inputs(2), torch.arange(18.0).reshape(1, 2, 3, 3).repeat(2, 1, 1, 1)
        )
        with pytest.raises(ValueError, match="must return a model"):
            cases.find(f"{file}:wrong")
        with pytest.raises(ValueError, match="no function 'absent'"):
            cases.find(f"{file}:absent")
        with pytest.raises(ValueError, match="there is no file"):
            cases.find(f"{tmp_path}/no.py:f")

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("f = nn.Conv2d(1, 1, 1)", "f is a model, not a function that returns one"),
            ("\ndef f(): raise KeyError('gone')", "own.py, line 3: KeyError: 'gone'"),
            ("def f(a): return a", "own.py: TypeError: f() missing 1 required positional argument"),
            ("import no_such_module", "own.py, line 2: ModuleNotFoundError: No module named"),
            ("def f(:", "own.py: SyntaxError: invalid syntax"),
            (
                "def f(): return nn.Conv2d(2, 1, 1), torch.ones(1, 3, 4, 4)",
                "own.py: RuntimeError: ",
            ),
        ],
    )
    def test_what_a_file_raises_is_named(self, tmp_path: Path, code: str, message: str) -> None:
        (tmp_path / "own.py").write_text(f"import torch; from torch import nn\n{code}\n")
        with pytest.raises(ValueError, match=re.escape(message)):
            cases.find(f"{tmp_path}/own.py:f")


class TestResults:
    def make(self) -> results.Results:
        measurement = results.Measurement("eager", "nchw", "eager NCHW", rounds=[[1.0, 2.0]])
        case = results.CaseResult("3a", "module 3a", 1, 10, 20, True, [measurement])
        return results.Results("now", {"cpu": "x"}, {"batches": [1]}, cases=[case])

    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "r.json"
        self.make().save(path)
        assert results.Results.load(path) == self.make()

    def test_a_kill_while_writing_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "r.json"
        self.make().save(path)
        before = path.read_bytes()

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", killed)
        changed = self.make()
        changed.created = "later"
        with pytest.raises(KeyboardInterrupt):
            changed.save(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "cases": 3}']
    )
    def test_anything_else_is_refused_by_name(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is not a results file"):
            results.Results.load(path)
