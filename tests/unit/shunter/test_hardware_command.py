"""`shunter hardware`: predictions of configurations, and the catalogue they rest on."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shunter.cli import app

HEADER = "device,model,precision,tensor_parallel,input_tokens,output_tokens,concurrency"
ROW = "h100,llama-3.1-8b,fp8,1,512,128,4"


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["hardware", *words])


def written(tmp_path: Path, *rows: str, header: str = HEADER) -> str:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join((header, *rows)) + "\n")
    return str(file)


def predicted(tmp_path: Path, *rows: str, header: str = HEADER, more: tuple[str, ...] = ()) -> list:
    result = typed("predict", written(tmp_path, *rows, header=header), "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"]


def test_each_row_has_a_prediction_or_an_error_in_order(tmp_path: Path) -> None:
    bad = [
        ("nope,llama-3.1-8b,fp8,1,512,128,4", "device: 'nope' is unknown"),
        ("h100,llama-3.1-8,fp8,1,512,128,4", "did you mean llama-3.1-8b?"),
        ("h100,llama-3.1-8b,fp9,1,512,128,4", "precision"),
        ("a100,llama-3.1-8b,fp8,1,512,128,4", "no rate for fp8"),
        ("h100,llama-3.1-8b,fp8,0,512,128,4", "tensor_parallel"),
        ("h100,llama-3.1-8b,fp8,1,,128,4", "input_tokens"),
        ("h100,llama-3.1-8b,fp8,1,512,128,4.5", "concurrency"),
        ("h100,llama-3.1-8b,fp8,1,512", "concurrency"),
        ("h100,llama-3.1-405b,bf16,1,512,128,4", "weights"),
        ("h100,llama-3.1-70b,fp8,1,99999,128,4", "KV memory"),
    ]
    first, *errors, last = predicted(tmp_path, ROW, *(row for row, _ in bad), ROW)
    assert set(first) == {"ttft_ms", "tpot_ms"}
    assert 30 < first["ttft_ms"] < 200
    assert 3 < first["tpot_ms"] < 12
    assert last == first
    for (_, told), found in zip(bad, errors, strict=True):
        assert set(found) == {"error"}
        assert told in found["error"]


def test_optional_columns_count_and_others_do_not(tmp_path: Path) -> None:
    header = f"{HEADER},requests,length_low,kv_precision,expert_parallel,framework"
    rows = ["40,1,,1,x", ",,,,", "40,0.5,,1,", "40,1,bf16,,", "4,0.5,,1,", "40,1,fp8,1,"]
    found = predicted(tmp_path, *(f"{ROW},{row}" for row in rows), header=header)
    usual, empty, shorter, wide, once, narrow = found
    assert usual == empty == narrow
    assert shorter["ttft_ms"] < usual["ttft_ms"]
    assert wide["tpot_ms"] > usual["tpot_ms"]
    # Only the first requests come all at once.
    assert once["ttft_ms"] > shorter["ttft_ms"]
    wrong = ["0,1,,1,", "40,2,,1,", "40,1,fp4,1,", "40,1,,x,"]
    for each in predicted(tmp_path, *(f"{ROW},{row}" for row in wrong), header=header):
        assert set(each) == {"error"}


def test_a_file_that_cannot_be_read_ends_with_2(tmp_path: Path) -> None:
    assert typed("predict", str(tmp_path / "none.csv"), "--json").exit_code == 2
    assert typed("predict", written(tmp_path, "h100", header="device"), "--json").exit_code == 2
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    assert typed("predict", str(tmp_path / "bytes.csv")).exit_code == 2
    broken = tmp_path / "broken.yaml"
    broken.write_text("devices: {x: {}}")
    assert typed("predict", written(tmp_path, ROW), "--catalogue", str(broken)).exit_code == 2
    assert typed("list", "--catalogue", str(tmp_path / "none.yaml")).exit_code == 2


@pytest.mark.parametrize("column", ["device", "kv_precision"])
def test_a_column_that_counts_stands_there_once(tmp_path: Path, column: str) -> None:
    header = f"{HEADER},{column}" if column == "device" else f"{HEADER},{column},{column}"
    result = typed("predict", written(tmp_path, f"{ROW},h200,", header=header), "--json")
    assert result.exit_code == 2
    assert f"has {column} more than once" in result.stderr
    assert len(predicted(tmp_path, f"{ROW},a,b", header=f"{HEADER},note,note")) == 1


def test_weights_that_do_not_fit_are_told_as_such(tmp_path: Path) -> None:
    (found,) = predicted(tmp_path, "h100,qwen3-235b-a22b,bf16,1,512,64,4")
    assert str(found["error"]).startswith("the weights take 470.0 GB of the 72.0 GB"), found


ODD_FILES = {
    "a byte order mark": f"\ufeff{HEADER}\n{ROW}\n",
    "line ends of Windows": f"{HEADER}\r\n{ROW}\r\n",
    "line ends of old": f"{HEADER}\r{ROW}\r",
    "no line end": f"{HEADER}\n{ROW}",
    "blank lines": f"\n  \n{HEADER}\n\n{ROW}\n   \n\n",
    "spaces": f"{HEADER.replace(',', ' , ')}\n{ROW.replace(',', ' ,  ')} \n",
    "quotes": HEADER + ',note\n"h100", "llama-3.1-8b","fp8","1","512","128","4","a, ""b""\nc"\n',
    "more fields than names": f"{HEADER}\n{ROW},,x,y\n",
    "another column's bytes": f"{HEADER},note\n{ROW},caf\udce9\n",
    "a field of 200,000 characters": f"{HEADER},note\n{ROW},{'x' * 200_000}\n",
}


@pytest.mark.parametrize("odd", ODD_FILES)
def test_an_odd_file_has_the_same_rows(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "odd.csv"
    file.write_bytes(ODD_FILES[odd].encode("utf-8", "surrogateescape"))
    result = typed("predict", str(file), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == predicted(tmp_path, ROW)


def test_no_row_no_prediction(tmp_path: Path) -> None:
    assert predicted(tmp_path) == []


NUMBERS = [
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e18",
    "1.5",
    "0x10",
    "abc",
    "1,000",
    "1e-300",
    "true",
    "½",
]


def test_odd_values_are_errors_of_their_rows_alone(tmp_path: Path) -> None:
    """Each number of a row, and the devices, models and precisions that nobody has."""
    header = f"{HEADER},requests,length_low,kv_precision,expert_parallel"
    names, rows = header.split(","), []
    for column in names:
        for text in ["", "x" * 200_000, "{}", "h\0", *NUMBERS]:
            row = dict(zip(names, [*ROW.split(","), "", "", "", ""], strict=True)) | {column: text}
            rows.append(",".join(f'"{value}"' for value in row.values()))
    found = predicted(tmp_path, *rows, header=header)
    assert len(found) == len(rows)
    # Of optional columns one may be empty, and a share may be tiny or none.
    assert sum("error" not in each for each in found) == 4 + 2
    assert all(len(each.get("error", "")) < 600 for each in found)


CATALOGUE = """
devices:
  new: {kind: inference_silicon, memory_gb: 80, memory_bandwidth_tb_s: 3.35,
        tflops: {bf16: 989, fp8: 1979}, usd_per_hour: 1, compute_efficiency: 0.71, link_gb_s: 450}
  sockets: {kind: cpu, memory_gb: 80, memory_bandwidth_tb_s: 3.35,
        tflops: {bf16: 989, fp8: 1979}, usd_per_hour: 1}
models:
  small: {parameters_b: 1, layers: 16, kv_heads: 8, head_dim: 64, context_tokens: 8192}
"""


def test_a_catalogue_adds_devices_and_models_which_inherit(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(CATALOGUE)
    rows = [ROW, *(ROW.replace("h100", name) for name in ("new", "sockets"))]
    more = ("--catalogue", str(file))
    small = ROW.replace("llama-3.1-8b", "small")
    packaged, new, sockets, other = predicted(tmp_path, *rows, small, more=more)
    # The same figures and inherited constants; a CPU has none of them.
    assert new == packaged
    assert sockets["ttft_ms"] < 0.7 * packaged["ttft_ms"]
    assert other["tpot_ms"] < packaged["tpot_ms"]
    listed = json.loads(typed("list", "--json", *more).stdout)
    status = {each["name"]: (each["status"], each["error"]) for each in listed["devices"]}
    assert status["new"][0] == "datasheet"
    assert status["h100"][0] == "measured"
    assert status["crescent-island"][0] == "assumed"
    assert status["h100"][1] < status["new"][1] < status["crescent-island"][1]


def test_several_catalogues_add_up_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("devices.yaml", "models.yaml", "slower.yaml")]
    devices, models = CATALOGUE.split("models:")
    files[0].write_text(devices)
    files[1].write_text("models:" + models)
    files[2].write_text(devices.replace("memory_bandwidth_tb_s: 3.35", "memory_bandwidth_tb_s: 1"))
    more = [word for file in files[:2] for word in ("--catalogue", str(file))]
    row = ROW.replace("h100", "new").replace("llama-3.1-8b", "small")
    (fast,) = predicted(tmp_path, row, more=more)
    (slow,) = predicted(tmp_path, row, more=(*more, "--catalogue", str(files[2])))
    assert slow["tpot_ms"] > 1.1 * fast["tpot_ms"]
    files[2].write_text("devices: {x: {}}")
    refused = typed("list", *more, "--catalogue", str(files[2]))
    assert refused.exit_code == 2
    assert "slower.yaml" in refused.output
    assert "devices.yaml" not in refused.output


def test_tables_mark_what_is_assumed(tmp_path: Path) -> None:
    rows = (ROW, ROW.replace("h100", "mi300x"), ROW.replace("h100", "x"))
    lines = typed("predict", written(tmp_path, *rows)).stdout.splitlines()
    told = {
        name: next(line for line in lines if f" {name} " in line) for name in ("h100", "mi300x")
    }
    assert "assumed" in told["mi300x"]
    assert "assumed" not in told["h100"]
    listed = typed("list").stdout
    assert "crescent-island" in listed
    assert "gpt-oss-120b" in listed


def test_a_power_that_nobody_published_is_unknown_and_models_have_no_error() -> None:
    told = json.loads(typed("list", "--json").stdout)
    watts = {each["name"]: each["power_w"] for each in told["devices"]}
    assert (watts["h100"], watts["crescent-island"]) == (700, 350)
    assert [name for name, power_w in watts.items() if power_w is None] == [
        "ai200", "epyc-venice", "inferentia2", "mi455x", "tpu-v5e", "tpu-v6e", "tpu7x",
    ]  # fmt: skip
    assert all("error" not in each for each in told["models"])
    devices, models = typed("list").stdout.split("model  ", 1)
    rows = {
        row.split()[1]: row
        for row in devices.splitlines()
        if row.startswith("\N{BOX DRAWINGS LIGHT VERTICAL} ")
    }
    assert "1,000 W" in rows["b200"]
    assert "unknown" in rows["ai200"]
    assert "x 1.42" in rows["h100"]
    assert " error " in devices.splitlines()[1]
    assert " error " not in models.splitlines()[0]


def test_lengths_may_begin_at_nothing(tmp_path: Path) -> None:
    header = f"{HEADER},requests,length_low"
    rows = [f"h100,llama-3.1-8b,fp8,1,2,2,4,1000,{low}" for low in ("0", "0.5")]
    none, half = predicted(tmp_path, *rows, header=header)
    # Of two tokens at most, and at least one, both draw the same.
    assert none == half


@pytest.mark.parametrize("low", ["1", "0.8"])
def test_long_replies_of_many_clients_take_a_fraction_of_a_second(tmp_path: Path, low: str) -> None:
    row = f"b200,gpt-oss-120b,mxfp4,4,1024,8192,128,{low}"
    began = time.process_time()
    (found,) = predicted(tmp_path, row, header=f"{HEADER},length_low")
    # 1,000 rows in five minutes leave 0.3 s a row; this one is among the longest.
    assert time.process_time() - began < 1.5
    assert 3 < found["tpot_ms"] < 12
