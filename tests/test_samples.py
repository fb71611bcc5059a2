"""Clean samples come in, go out and come back as the same samples."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secalign_kit.pairs import make_pairs
from secalign_kit.samples import (
    DINOSAUR_HOST,
    DINOSAUR_PAYLOAD,
    Sample,
    as_json,
    load_samples,
    save_samples,
    shipped_samples,
)

texts = st.text(max_size=30)
samples = st.builds(
    Sample, texts.filter(str.strip), texts, texts, texts, texts.filter(lambda t: t != "")
)
tmp_ok = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@tmp_ok
@given(rows=st.lists(samples, min_size=1, max_size=4))
def test_samples_survive_a_round_trip_through_jsonl(tmp_path, rows):
    save_samples(rows, tmp_path / "rows.jsonl")
    assert load_samples(tmp_path / "rows.jsonl") == rows


def test_request_joins_instruction_and_data_and_has_no_trailing_space():
    assert DINOSAUR_HOST.request.endswith("task. Determine whether a number is prime.")
    assert DINOSAUR_PAYLOAD.request == "Do dinosaurs exist?"


def test_alpaca_rows_lose_surrounding_whitespace_and_gain_an_id(tmp_path):
    path = tmp_path / "farm.json"
    row = {"instruction": "Sum.", "input": "1 2", "output": "\n\n3", "generator": "x"}
    path.write_text(json.dumps([row]), encoding="utf-8")
    assert load_samples(path) == [Sample("Sum.", "1 2", "3", "", "farm-00000")]


def test_alpaca_rows_may_lack_an_input_and_stand_one_a_line(tmp_path):
    rows = [{"instruction": "Greet.", "output": "Hello."},
            {"instruction": "Sum.", "input": "1 2", "output": "3"}]
    listed, lines = tmp_path / "LIST.JSON", tmp_path / "lines.jsonl"
    listed.write_text(json.dumps(rows), encoding="utf-8")
    lines.write_text("\r\n".join(map(json.dumps, rows)), encoding="utf-8")
    for path in (listed, lines):
        assert [(s.instruction, s.data, s.answer) for s in load_samples(path)] == [
            ("Greet.", "", "Hello."), ("Sum.", "1 2", "3")]


ALPACA = {"instruction": "Sum.", "input": "1 2", "output": "3"}


@pytest.mark.parametrize("row", [
    ALPACA,
    {"instruction": "Sum.", "context": "1 2", "response": "3", "category": "open_qa"},
    {"messages": [{"role": "system", "content": "Sum."}, {"role": "user", "content": "1 2"},
                  {"role": "assistant", "content": "3"}]},
    {"conversations": [{"from": "system", "value": "Sum."}, {"from": "human", "value": "1 2"},
                       {"from": "gpt", "value": "3"}], "source": "a chat"},
])
def test_common_layouts_are_recognized(tmp_path, row):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    assert load_samples(path) == [Sample("Sum.", "1 2", "3", "", "rows-00000")]


def test_a_user_turn_alone_is_the_instruction(tmp_path):
    turns = [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "Hello."}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    assert load_samples(path) == [Sample("Greet.", "", "Hello.", "", "rows-00000")]


@pytest.mark.parametrize("turns, why", [
    ([{"role": "user", "content": "a"}] * 2, "a second turn of 'user'"),
    ([{"role": "tool", "content": "a"}], "a turn of 'tool'"),
    ([{"role": ["user"], "content": "a"}], "a turn of "),
    ([{"role": "user", "content": None}], "'messages.content' is missing"),
    ([{"role": "assistant", "content": "a"}], "'messages' is empty"),
    ("hello", "no list of turns"),
])
def test_chats_of_another_shape_are_refused(tmp_path, turns, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"row 0, field .*{why}|row 0, field {why}"):
        load_samples(path)


@pytest.mark.parametrize("word", ["<noinput>", "nan", "None", "N/A", " null "])
def test_a_word_for_no_data_is_no_data_and_counted(tmp_path, word):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ALPACA | {"input": word}, ALPACA]), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"rows\.json: 1 of 2 rows"):
        assert [sample.data for sample in load_samples(path)] == ["", "1 2"]


def test_an_instruction_that_the_data_repeat_stays_in_both_and_makes_pairs(tmp_path):
    path = tmp_path / "rows.json"
    repeated = ALPACA | {"input": f"{ALPACA['instruction']} 1 2"}
    other = {"instruction": "Greet.", "input": "", "output": "Hello!"}
    path.write_text(json.dumps([repeated, other]), encoding="utf-8")
    samples = load_samples(path)
    assert (samples[0].instruction, samples[0].data) == (
        ALPACA["instruction"].strip(), repeated["input"].strip())
    pair, = make_pairs(samples, seed=0)
    instruction, data = (message["content"] for message in pair["prompt"])
    assert instruction == samples[0].instruction
    assert data[: pair["injection_start"]].startswith(samples[0].data)
    assert "Greet." in data[pair["injection_start"]:]


def test_null_is_no_data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ALPACA | {"input": None}]), encoding="utf-8")
    assert load_samples(path)[0].data == ""


COLUMNS = {"instruction": "question", "data": "passage", "answer": "gold"}


def test_columns_are_named_by_the_user(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,passage,gold,n\n"Sum.","1\n2",3,x\n', encoding="utf-8")
    assert load_samples(path, COLUMNS) == [Sample("Sum.", "1\n2", "3", "", "rows-00000")]


@pytest.mark.parametrize("without", ["data", "answer"])
def test_columns_of_data_and_answers_need_not_be_named(tmp_path, without):
    path = tmp_path / "rows.csv"
    path.write_text("question,passage,gold\nSum.,1,3\n", encoding="utf-8")
    named = {name: column for name, column in COLUMNS.items() if name != without}
    asked = Sample("Sum.", "1", "3", "", "rows-00000")
    assert load_samples(path, named) == [replace(asked, **{without: ""})]


@pytest.mark.parametrize("changes, why", [
    ({"answer": "golden"}, "no column 'golden'; it has question, passage, gold"),
    ({"instruction": "Question"}, "no column 'Question'"),
    ({"result": "gold"}, "columns name 'result'"),
])
def test_columns_that_are_not_there_are_refused(tmp_path, changes, why):
    path = tmp_path / "rows.csv"
    path.write_text("question,passage,gold\na,b,c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=why):
        load_samples(path, COLUMNS | changes)
    with pytest.raises(ValueError, match="no instruction"):
        load_samples(path, {"data": "passage"})


@pytest.mark.parametrize("line, where", [
    ('{"instruction": 3}', "row 1, field 'instruction'"),
    ('{"instruction": " "}', "row 1, field 'instruction'"),
    ('{"instruction": "a", "answer": null}', "row 1, field 'answer'"),
    ('{"instruction": "a", "result": "b"}', "row 1 has the unknown field 'result'"),
    ('{"instruction": "a", "output": 3}', "row 1, field 'output' is of type int"),
    ('{"instruction": "a", "data": "\\ud800"}', "row 1, field 'data'"),
    ("[]", "row 1 is of type list"),
    ("{", "row 1 is not valid JSON"),
])
def test_a_bad_row_is_named_by_number_and_field(tmp_path, line, where):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=where):
        load_samples(path)


@pytest.mark.parametrize("name, content", [
    ("absent.jsonl", None), ("rows.csv", b""), ("rows.json", b"{}"), ("rows.json", b"\xff"),
])
def test_a_file_of_another_kind_is_refused_with_its_name(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_samples(tmp_path / name)


@pytest.mark.parametrize(("word", "cut"), [("true", True), ("True", True), ("1", True), ("", False),
                                           ("false", False), ("0", False)])
def test_cut_is_read_from_a_table_too(tmp_path, word, cut):
    path = tmp_path / "rows.csv"
    path.write_text(f"instruction,data,answer,cut\nSay it.,a,b,{word}\n")
    assert load_samples(path)[0].cut is cut


def test_json_says_true_false_or_null_and_nothing_else_of_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    for value, cut in ((True, True), (False, False), (None, False)):
        path.write_text(json.dumps({"instruction": "Say it.", "cut": value}))
        assert load_samples(path)[0].cut is cut
    path.write_text(json.dumps({"instruction": "Say it.", "cut": "perhaps"}))
    with pytest.raises(ValueError, match="row 0, field 'cut' is 'perhaps'; write true or false"):
        load_samples(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_written_as_json(value):
    with pytest.raises(ValueError, match="is no number and is not written"):
        as_json({"loss": value})


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    save_samples([DINOSAUR_HOST], path)
    with pytest.raises(UnicodeEncodeError):
        save_samples([Sample("\ud800")], path)
    assert load_samples(path) == [DINOSAUR_HOST]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="train, validation, heldout"):
        shipped_samples("test")
