"""Modelled cycles of whole encoders: what the guest labels, the table and the picture."""

from pathlib import Path

import cycles_model_guest
import pytest
import torch
from cycles import main
from cycles_figures import Row
from cycles_guest import sqnr
from cycles_models import (
    MODELS,
    PARTS,
    draw_models,
    model_rows,
    model_table,
    read_encoders,
    speedups,
    write_encoders,
)
from torch import Tensor

CYCLES = {
    ("fp32", "whole"): 900, ("fp32", "linear"): 800, ("torch", "whole"): 400, ("torch", "linear"): 300,
    ("ours", "whole"): 200, ("ours", "linear"): 100, ("all", "attention"): 40, ("all", "normalisation"): 20,
}  # fmt: skip


def rows(model: str = "distilbert") -> list[Row]:
    return [
        Row(f"{whose} {part} {length}", 16, 0, 0, busiest=1000 * cycles * factor, working=16, regions=1)
        for length, factor in ((8, 1), (16, 3))
        for (whose, part), cycles in CYCLES.items()
    ]


def test_a_layer_s_figures_are_multiplied() -> None:
    found = model_rows("distilbert", rows())
    assert found[0] == ("fp32", "whole", 8, 6 * 900_000)
    assert speedups(found, "linear") == {8: 3.0, 16: 3.0}
    assert speedups(found, "whole") == {8: 2.0, 16: 2.0}


def test_table_of_an_encoder() -> None:
    lines = model_table("distilbert", model_rows("distilbert", rows()), "neoverse-v1", 16).splitlines()
    assert lines[0].split()[-4:] == ["tokens", "8", "16", "mean"]
    cells = {line.rsplit("  ", 3)[0].split("  ")[0]: line.split()[-3:] for line in lines[1:]}
    assert cells["encoder: times as fast"] == ["2.00", "2.00", "2.00"]
    assert cells["linear layers: times as fast"] == ["3.00", "3.00", "3.00"]
    assert cells["of ours: linear layers"] == ["50%", "50%", "50%"]
    assert cells["of ours: attention"] == ["20%", "20%", "20%"]
    assert cells["of ours: Python and what is left"] == ["20%", "20%", "20%"]
    assert "5400" in lines[1]


def test_lengths_that_were_not_modelled_in_fp32_have_no_figure() -> None:
    found = [row for row in model_rows("distilbert", rows()) if (row.whose, row.length) != ("fp32", 16)]
    lines = model_table("distilbert", found, "neoverse-v1", 16).splitlines()
    assert [line.split()[-2:] for line in lines if "fp32" in line] == [["5400", "-"], ["4800", "-"]]
    assert lines[4].split()[-3:] == ["2.00", "2.00", "2.00"]


def test_models_are_written_read_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    found = {name: model_rows(name, rows()) for name in ("distilbert", "bert-base")}
    for file, (name, of) in zip(files, found.items(), strict=True):
        write_encoders(file, "neoverse-v1", 16, {name: of})
    assert read_encoders(files, list(found)) == ("neoverse-v1", 16, found)
    assert main(["--model", "bert-base", "--from", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert model_table("bert-base", found["bert-base"], "neoverse-v1", 16) in printed
    assert "distilbert" not in printed
    with pytest.raises(ValueError, match="no figures of bert-large; they have those of distilbert, bert-base"):
        read_encoders(files, ["bert-large"])

    write_encoders(files[1], "neoverse-v1", 1, found)
    with pytest.raises(ValueError, match=r"different cores or numbers of threads: \[\('neoverse-v1', 1\), "):
        read_encoders(files, ["bert-base"])
    write_encoders(files[1], "neoverse-v9", 16, found)
    with pytest.raises(ValueError, match=r"names a core or models that are not known"):
        read_encoders(files[1:], ["bert-base"])
    files[1].write_text("[]")
    with pytest.raises(ValueError, match=r"is no file that --model --json wrote"):
        read_encoders(files[1:], ["bert-base"])


def test_picture_of_encoders(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "models.svg"
    draw_models({name: model_rows(name, rows()) for name in MODELS}, "neoverse-v1", 16, file)
    drawn = file.read_text()
    for name in MODELS:
        assert f"<!-- {name}, linear layers (mean 3.00) -->" in drawn
    assert "nothing measured" in drawn


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for options, complaint in (
        (["--top", "3"], "--model goes with"),
        (["--threads", "1,16"], "--model takes one number of threads"),
    ):
        with pytest.raises(SystemExit):
            main(["--model", "bert-base", *options])
        assert complaint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--model", "bert"])
    assert "'bert' is none of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_guest_makes_each_model_s_layer_and_its_parts(model: str) -> None:
    pytest.importorskip("transformers")
    with torch.inference_mode():
        layer, config = cycles_model_guest.encoder_layer(model)
        ours = cycles_model_guest.quantized_by_ours(layer)
        states = torch.randn(1, 4, config.hidden_size)
        calls = cycles_model_guest.linear_calls(ours, states, torch.nn.Linear)
        assert len(calls) == 6
        assert cycles_model_guest.worst_sqnr(calls, layer) > cycles_model_guest.LEAST_SQNR
        name, (_, output) = next(iter(calls.items()))
        output[0, 3] = 0
        assert cycles_model_guest.worst_sqnr(calls, layer) < cycles_model_guest.LEAST_SQNR, name
        inputs = {name: input for name, (input, _) in calls.items()}
        layers = {"fp32": layer, "ours": ours}
        called = {
            name: call() for name, call in cycles_model_guest.parts(layers, states, inputs, config.num_attention_heads)
        }
        assert {name.split()[1] for name in called} == {"whole", *PARTS}
        expected, actual = (
            output if isinstance(output, Tensor) else output[0]  # some layers wrap it
            for output in (called["fp32 whole"], called["ours whole"])
        )
        assert sqnr(expected, actual) > cycles_model_guest.LEAST_SQNR
