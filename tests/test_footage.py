"""VideoNIAH on real footage: needles spliced into haystacks frame by frame, cases that are answered once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refusal, Vilamp
from video_files import read_numbers, write_video

from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.evaluation import footage as footage_module
from vilamp_lite.evaluation.footage import Case, Splice, evaluate_cases, load_cases
from vilamp_lite.evaluation.scoring import wilson_interval
from vilamp_lite.generation import Answer
from vilamp_lite.modeling import ViLaMPForConditionalGeneration as Model
from vilamp_lite.processing import ViLaMPProcessor as Processor


@pytest.fixture(scope="module")
def model(miniature: Path) -> Model:
    return load_checkpoint(miniature)


@pytest.fixture(scope="module")
def processor(miniature: Path, model: Model) -> Processor:
    return load_processor(miniature, model.config)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A haystack of 20 numbered frames and a needle of 5 smaller ones, both one frame per second."""
    folder = tmp_path_factory.mktemp("footage")
    write_video(folder / "hay.mp4", 20, rate=1)
    write_video(folder / "needle.mp4", 5, rate=1, size=(64, 96))
    return folder


RECORD = {"haystack": "hay.mp4", "needle": "needle.mp4", "depth": 0.5, "question": "which?"}


def make_case(footage: Path, **changes: object) -> Case:
    case = Case(footage / "hay.mp4", footage / "needle.mp4", 0.5, "what color is the star?", ("red", "blue"), "blue")
    return replace(case, **changes)


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (0.3, 6), (0.5, 10), (1, 20)])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
def test_a_splice_holds_the_needle_at_its_depth(depth: float, place: int, batch_size: int, footage: Path) -> None:
    splice = Splice.of(make_case(footage, depth=depth), fps=1)
    assert (splice.place, splice.needle.num_frames, splice.num_frames) == (place, 5, 25)
    shown = []
    for frames, indices, timestamps in splice.batches(batch_size):
        assert 0 < len(frames) <= batch_size
        assert indices.tolist() == timestamps.tolist() == list(range(len(shown), len(shown) + len(frames)))
        shown += [(number, frames.shape[1]) for number in read_numbers(frames)]
    hay, needle = [(number, 128) for number in range(20)], [(number, 64) for number in range(5)]
    assert shown == [*hay[:place], *needle, *hay[place:]]


def test_a_splices_frames_one_by_one(footage: Path) -> None:
    splice = Splice.of(make_case(footage), fps=0.5)
    together = [frame for batch in splice.batches(8) for frame in batch.frames]
    assert len(together) == splice.num_frames == 10 + 3
    for number, frame in enumerate(together):
        assert np.array_equal(splice.at([number])[0], frame)
    assert np.array_equal(splice.at([12, 0]), [together[12], together[0]])


@pytest.mark.parametrize("depth", [0, 0.5])
def test_a_splice_is_encoded_like_its_frames(depth: float, footage: Path, model: Model, processor: Processor) -> None:
    splice = Splice.of(make_case(footage, depth=depth), fps=1)
    pixels = torch.cat([processor.vision_pixels(batch.frames) for batch in splice.batches(8)])
    ahead = []
    for question in ("what color is the star?", "which two are with the moon?"):
        with torch.no_grad():
            query = model.embed_query(**processor.selector_query([question]))[0]
            expected = model.encode_frames(pixels, pixels, query)
        sequence = model.encode_video(splice, question, processor)
        torch.testing.assert_close(sequence.embeds, expected.embeds, rtol=0, atol=1e-5)
        assert torch.equal(sequence.keyframes, expected.keyframes)
        ahead += model.early_references(25, expected.keyframes)
    assert ahead  # a keyframe was read ahead


def test_cases_are_answered_and_kept(miniature: Path, footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        RECORD | {"options": ["a cat", "a dog"], "answer": "a dog"},
        RECORD | {"depth": 1, "question": "and what?", "options": [], "answer": "A star."},
    ]
    (footage / "cases.json").write_text(json.dumps(records))
    cases = load_cases(footage / "cases.json")
    letter = "Answer with the option's letter from the given choices directly."
    assert [case.prompt for case in cases] == [f"which?\nA. a cat\nB. a dog\n{letter}", "and what?"]
    prompts: list[str] = []

    def say(model, processor, prompt, sequence, **options) -> Answer:
        prompts.append(prompt)
        return Answer("B." if "B. a dog" in prompt else "a moon", torch.tensor([0]))

    monkeypatch.setattr(footage_module, "answer", say)
    out = footage / "out"
    result = evaluate_cases(miniature, cases, out=out)
    assert prompts == [case.prompt for case in cases]
    low, high = wilson_interval(1, 2)
    scores = {"questions": 2, "correct": 1, "accuracy": 0.5, "low": low, "high": high}
    assert {name: result[name] for name in scores} == scores
    assert [p["correct"] for p in result["predictions"]] == [True, False]
    assert [p["tokens"] for p in result["predictions"]] == [4 * 16 + 21 + 1] * 2
    places = [range(10, 15), range(20, 25)]
    for prediction, needle in zip(result["predictions"], places, strict=True):
        assert prediction["needle_recall"] == any(frame in needle for frame in prediction["keyframes"])
    # Again: nothing is answered, and another case is refused.
    assert evaluate_cases(miniature, cases, out=out) == result
    assert len(prompts) == 2
    with pytest.raises(ValueError, match=r"case_1.json is of another evaluation \(depth 1.0, not 0\)"):
        evaluate_cases(miniature, [cases[0], replace(cases[1], depth=0)], out=out)
    # So is a damaged result, and another video of the same name.
    kept = (out / "case_0.json").read_text()
    for prediction in (None, "yes", {"correct": True}):
        (out / "case_0.json").write_text(json.dumps(json.loads(kept) | {"prediction": prediction}))
        with pytest.raises(ValueError, match=r"case_0\.json: prediction: .*; delete it"):
            evaluate_cases(miniature, cases, out=out)
    (out / "case_0.json").write_text(kept)
    content = (footage / "hay.mp4").read_bytes()
    write_video(footage / "hay.mp4", 21, rate=1)
    with pytest.raises(ValueError, match=r"case_0.json is of another evaluation \(haystack_sha256"):
        evaluate_cases(miniature, cases, out=out)
    (footage / "hay.mp4").write_bytes(content)


def test_a_real_answer_to_a_case(miniature: Path, footage: Path, model: Model, processor: Processor) -> None:
    case = make_case(footage)
    (prediction,) = evaluate_cases(miniature, [case])["predictions"]
    sequence = model.encode_video(Splice.of(case, 1), case.question, processor)
    prompt = processor.prompts([case.prompt])
    tokens = model.generate(**prompt, video_embeds=[sequence.embeds], max_new_tokens=32, do_sample=False)
    assert prediction["prediction"] == processor.batch_decode(tokens)[0]


def test_bad_cases(miniature: Path, footage: Path) -> None:
    record, file = RECORD | {"options": ["a", "b"], "answer": "a"}, footage / "bad.json"
    file.write_text(json.dumps([record]), "utf-8-sig")  # as Windows' editor writes it
    assert load_cases(file)[0].answer == "a"
    for change, message in (
        ({"depth": 2}, "depth: input should be less than or equal to 1, got int 2"),
        ({"depth": "0.5"}, "depth: input should be a valid number, got str '0.5'"),
        ({"haystack": "none.mp4"}, "haystack: there is no file .*none.mp4"),
        ({"needle": 3}, "needle: .*, got int 3"),
        ({"question": " "}, "question: must be a non-empty string, got ' '"),
        ({"options": "ab"}, "options: input should be a valid array"),
        ({"options": ["a", "a"]}, "options must differ by more than case and punctuation, got a, a"),
        ({"options": [str(number) for number in range(27)]}, "options: .* at most 26 items"),
        ({"answer": "c"}, "answer must be one of the options a, b, got 'c'"),
        ({"hint": "x"}, "has no field 'hint'; a case has haystack, needle, depth, question, options"),
    ):
        file.write_text(json.dumps([record | change]))
        with pytest.raises(ValueError, match=f"case 0: {message}"):
            load_cases(file)
    for content, message in {
        "[]": "list should have at least 1 item",
        "[3]": "case 0: must be a mapping of names to values, got int 3; a case has haystack",
    }.items():
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_cases(file)
    with pytest.raises(ValueError, match=r"can't read .*none\.json as a list of cases"):
        load_cases(footage / "none.json")
    with pytest.raises(ValueError, match="cases must be at least one"):
        evaluate_cases(miniature, [])


def test_the_command_answers_cases(
    miniature: Path, footage: Path, monkeypatch: pytest.MonkeyPatch, vilamp: Vilamp, refusal: Refusal
) -> None:
    monkeypatch.chdir(footage)
    command = ("evaluate", "footage")
    record = RECORD | {"options": ["a [red] cat", "a dog"], "answer": "a [red] cat"}
    (footage / "mine.json").write_text(json.dumps([record]))
    code, out, err = vilamp(*command, "mine.json", "--model", miniature, "--json")
    assert code == 0, err
    assert json.loads(out)["questions"] == 1
    code, out, err = vilamp(*command, "mine.json", "--model", miniature)
    assert code == 0, err
    assert "which?" in out
    assert "a [red] cat" in out
    (kept,) = (footage / "runs" / "evaluate").rglob("case_0.json")
    assert str(kept.parent.relative_to(footage)) in out
    assert json.loads(kept.read_text())["prediction"]["question"] == "which?"
    assert "can't read x.json as a list of cases" in refusal(*command, "x.json", "--model", miniature)
    assert "nowhere: no such folder" in refusal(*command, "mine.json", "--model", "nowhere")
