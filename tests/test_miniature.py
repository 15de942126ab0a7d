"""The miniature's training: honest examples, what each stage trains, and a whole run in small."""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from vilamp_lite.baselines.mergers import QFormerMerger
from vilamp_lite.baselines.peers import PEERS
from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.evaluation.niah import load_qformer
from vilamp_lite.modeling import MixedPrecisionSequence, TokenKind, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld import bank as bank_module
from vilamp_lite.tinyworld.bank import SceneBank, bank_scenes
from vilamp_lite.tinyworld.encoder import TinyWorldConfig, TinyWorldModel, vocabulary
from vilamp_lite.tinyworld.miniature import miniature_config
from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import COLORS, SHAPES, Scene, render_scene
from vilamp_lite.training import miniature
from vilamp_lite.training.alignment import AlignmentTask, Lesson, naming_loss
from vilamp_lite.training.contrastive import ContrastiveTask, caption_matches, caption_texts
from vilamp_lite.training.examples import Example, Examples, describe_scenes, questions_about
from vilamp_lite.training.grounding import GroundingTask
from vilamp_lite.training.loop import Stage
from vilamp_lite.training.miniature import STUDIES, Recipe, assemble, curves, train_miniature
from vilamp_lite.training.mixed import VIEWS, MixedTask, PeerTask

os.environ["ACCELERATE_USE_CPU"] = "true"  # where numbers repeat to the bit
RANDOM, PAIRS = 450, 400  # enough that every question has needles
COLOR_NAMES = tuple(COLORS)


def random_encoder() -> TinyWorldModel:
    torch.manual_seed(0)
    return TinyWorldModel(TinyWorldConfig(text_config={"vocab_size": len(vocabulary())})).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """A bank whose features are noise: drawing its questions needs no pictures."""
    scenes = bank_scenes(RANDOM, PAIRS)
    ends = np.cumsum([scene.num_frames for scene in scenes])
    generator = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(ends[-1], 96, generator=generator), dim=1)
    patches = torch.randn(ends[-1], 16, 96, generator=generator).half()
    return Examples(SceneBank(tuple(scenes), embeds, patches, np.concatenate([[0], ends[:-1]]), RANDOM))


@pytest.fixture
def model() -> ViLaMPForConditionalGeneration:
    return assemble(random_encoder(), 0)


def scenes_of(example: Example, bank: SceneBank) -> list[tuple[Scene, bool, int, int]]:
    """A video's scenes in order: the bank's scene, whether it is a needle, its first frame in it, and how many."""
    found = []
    for number in range(int(example.scene[-1]) + 1):
        at = np.flatnonzero(example.scene == number)
        frames = example.frames[at]
        assert at.tolist() == list(range(at[0], at[0] + len(at)))
        assert frames.tolist() == list(range(frames[0], frames[0] + len(at)))
        scene = int(np.searchsorted(bank.first_frame, frames[0], side="right")) - 1
        assert frames[-1] < bank.first_frame[scene] + bank.lengths[scene]
        assert len(set(example.needle[at])) == 1
        found.append(
            (bank.scenes[scene], bool(example.needle[at[0]]), int(frames[0] - bank.first_frame[scene]), len(at))
        )
    return found


# --- Captions --------------------------------------------------------------------------------------------------------


def test_captions_against_a_loop() -> None:
    scenes = bank_scenes(25, 15)
    shown, cells = describe_scenes(scenes)
    matches = caption_matches(shown)
    texts = caption_texts()
    assert matches.shape == (40, len(texts))
    assert len(set(texts)) == len(texts) == 5 * 10 + 80 + 10 + 8
    for row, scene in zip(matches, scenes, strict=True):
        for fits, text in zip(row, texts, strict=True):
            words = set(re.findall(r"\w+", text))
            shapes, colors = words & set(SHAPES) or set(SHAPES), words & set(COLORS) or set(COLORS)
            assert fits == any(t.shape in shapes and t.color in colors for t in scene.things), (text, scene)
    for scene, things, places in zip(scenes, shown, cells, strict=True):
        counted = Counter((thing.shape, thing.color) for thing in scene.things)
        for shape, color in np.ndindex(things.shape):
            assert things[shape, color] == counted[SHAPES[shape], COLOR_NAMES[color]]
        named = {cell: (SHAPES[s], COLOR_NAMES[c]) for cell, (s, c) in enumerate(places.tolist()) if s >= 0}
        assert named == {thing.cell: (thing.shape, thing.color) for thing in scene.things}


# --- Questions about keyframes ---------------------------------------------------------------------------------------


def truths(scenes: list[Scene]) -> set[tuple[str, str]]:
    """Every question that these scenes, one frame each, answer in one way; read off the things themselves."""
    found = set()
    for shape in SHAPES:
        showing = [scene for scene in scenes if any(thing.shape == shape for thing in scene.things)]
        own = [[thing for thing in scene.things if thing.shape == shape] for scene in showing]
        if not showing or any(len(things) > 1 for things in own):
            continue
        colors = sorted({things[0].color for things in own}, key=COLOR_NAMES.index)
        answers = {}
        if len(colors) == 1:
            answers["attribute"] = colors[0]
        elif len(colors) == 2:
            answers["two needles"] = " and ".join(colors)
        elif len(colors) == len(COLOR_NAMES) - 1:
            (answers["roll call"],) = set(COLOR_NAMES) - set(colors)
        beside = [[thing.shape for thing in scene.things if thing.shape != shape] for scene in showing]
        if all(len(scene.things) == 2 and len(others) == 1 for scene, others in zip(showing, beside, strict=True)):
            others = sorted((one for (one,) in beside), key=SHAPES.index)
            if len(others) == 1:
                answers["companion"] = others[0]
            elif len(others) == 2 and others[0] != others[1]:
                answers["two companions"] = " and ".join(others)
        for family, answer in answers.items():
            assert answer in FAMILIES[family].options(shape)
            found.add((FAMILIES[family].text.format(shape=shape), answer))
    return found


def test_questions_are_what_the_scenes_answer(examples: Examples) -> None:
    random = np.random.default_rng(0)
    asked = Counter()
    for _ in range(300):
        count = int(random.integers(1, 6))
        chosen = random.integers(0, len(examples.bank.scenes), count)
        if random.random() < 0.5:
            chosen = random.integers(RANDOM, RANDOM + PAIRS, count)
        found = questions_about(examples.shown[chosen], random, 100)
        expected = truths([examples.bank.scenes[number] for number in chosen])
        assert len(found) == len(set(found))
        assert set(found) == expected
        some = questions_about(examples.shown[chosen], random, 2)
        assert len(some) == min(2, len(expected))
        assert set(some) <= expected
        # The easy questions can be kept few: no other gives way to them.
        easy = {turn for turn in expected if turn[0].startswith(("what color is", "what is with"))}
        few = set(questions_about(examples.shown[chosen], random, 100, most_easy=1))
        assert few - easy == expected - easy
        assert len(few & easy) == min(1, len(easy))
        asked.update(question.split(" the ")[0] for question, _ in found)
    assert len(asked) == 4
    assert min(asked.values()) > 20


# --- Questions about videos ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_are_true(family: str, examples: Examples) -> None:
    random = np.random.default_rng(1)
    answers, shapes, first_places = set(), set(), []
    assert {scene.seed % 2 for scene in examples.bank.scenes} == {0}  # an examination's are odd
    numbers = {"attribute": {1}, "companion": {1}, "two needles": {2}, "two companions": {2}}
    for turn in range(60):
        length = (200, 333, 1001)[turn % 3]
        example = examples.draw(random, family, length)
        assert len(example.frames) == len(example.needle) == len(example.scene) == length
        (shape,) = set(re.findall(r"\w+", example.question)) & set(SHAPES)
        assert example.question == FAMILIES[family].text.format(shape=shape)
        scenes = scenes_of(example, examples.bank)
        needles = [(scene, first, count) for scene, needle, first, count in scenes if needle]
        assert (example.question, example.answer) in truths([scene for scene, _, _ in needles])
        assert example.answer in FAMILIES[family].options(shape)
        assert len(needles) in numbers.get(family, range(14, 22))
        for scene, first, count in needles:
            assert first == 0
            assert count == (4 if family == "roll call" else scene.num_frames)
            assert not family.startswith("two") or count >= 8
        hay = [(scene, first, count) for scene, needle, first, count in scenes if not needle]
        for number, (scene, first, count) in enumerate(hay):
            assert all(thing.shape != shape for thing in scene.things)
            assert 3 <= len(scene.things) <= 5
            assert first == 0
            assert count == scene.num_frames or number == len(hay) - 1
        answers.add(example.answer)
        shapes.add(shape)
        first_places.append(np.flatnonzero(example.needle)[0] / length)
    assert len(shapes) >= 8
    assert len(answers) >= 8
    assert min(first_places) < 0.1
    assert family == "roll call" or max(first_places) > 0.6


def test_examples_follow_from_their_seed(examples: Examples) -> None:
    one, again, other = (examples.draw(np.random.default_rng(seed), "companion", 300) for seed in (5, 5, 6))
    assert (one.question, one.answer, one.frames.tolist()) == (again.question, again.answer, again.frames.tolist())
    assert one.frames.tolist() != other.frames.tolist()


@pytest.mark.parametrize("family", ["attribute", "two companions", "roll call"])
def test_a_video_of_needles_alone(family: str, examples: Examples) -> None:
    needles = int(examples.draw(np.random.default_rng(3), family, 400).needle.sum())
    only = examples.draw(np.random.default_rng(3), family, needles)
    assert only.needle.all()
    assert len(only.frames) == needles
    with pytest.raises(ValueError, match=f"{needles - 1} frames can't hold the needles of {needles}"):
        examples.draw(np.random.default_rng(3), family, needles - 1)


# --- Conversations and their loss ------------------------------------------------------------------------------------

TURNS = [("what color is the star?", "red"), ("which two are with the moon?", "ring and heart")]


def video_of(model: ViLaMPForConditionalGeneration, kinds: str, seed: int = 0) -> MixedPrecisionSequence:
    """Random tokens; k is a keyframe's, m a merged one."""
    tokens = torch.randn(len(kinds), 128, generator=torch.Generator().manual_seed(seed))
    kind = torch.tensor([TokenKind.PATCH if letter == "k" else TokenKind.MERGED for letter in kinds])
    return MixedPrecisionSequence(tokens, torch.tensor([0]), torch.arange(len(kinds)), kind)


def test_conversations_supervise_answers_and_early_answers(
    model: ViLaMPForConditionalGeneration, examples: Examples
) -> None:
    task = GroundingTask(model, examples)
    tokenizer, video = task.processor.tokenizer, model.config.video_token_id
    ids, labels = task.conversation(TURNS)
    assert len(ids) == len(labels)
    assert ids.count(video) == 1
    words = ["<video>" if token == video else tokenizer.convert_ids_to_tokens(token) for token in ids]
    chat = (
        "<|im_start|> system you are a helpful assistant . <|im_end|> <|im_start|> user <video> what color is the "
        "star ? <|im_end|> <|im_start|> assistant red <|im_end|> which two are with the moon ? <|im_end|> <|im_start|> "
        "assistant ring and heart <|im_end|>"
    )
    assert " ".join(words) == chat
    supervised = [(place, label) for place, label in enumerate(labels) if label != -100]
    spoken = [label for place, label in supervised if ids[place] == label]
    assert tokenizer.decode(spoken) == "red <|im_end|> ring and heart <|im_end|>"
    # What stands before a label is what should say it.
    early = [(words[place - 1], tokenizer.decode([label])) for place, label in supervised if ids[place] != label]
    assert early == [("star", "red"), ("moon", "ring"), ("?", "heart")]


def test_the_loss_is_the_models_own(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    task = AlignmentTask(model, examples).eval()
    conversation, video = task.conversation(TURNS), video_of(model, "kkkkmmm")
    ids, labels = (torch.tensor([row]) for row in conversation)
    with torch.no_grad():
        direct = model(input_ids=ids, video_embeds=[video.embeds], labels=labels, logits_to_keep=0)
        loss, accuracy = task.answer_loss([conversation], [video])
        targets = model.place_videos(ids, [video.embeds], labels=labels).labels
        right = (direct.logits.argmax(-1)[0, :-1] == targets[0, 1:])[targets[0, 1:] != -100]
        torch.testing.assert_close(loss, direct.loss)
        assert accuracy == pytest.approx(float(right.float().mean()))
        # Seven tokens have a position each; other steps are something else.
        same, _ = task.answer_loss([conversation], [video], np.ones(1))
        torch.testing.assert_close(same, loss)
        assert (task.answer_loss([conversation], [video], np.full(1, 0.2))[0] - loss).abs() > 1e-4


def test_the_mixed_stage_meets_videos_of_few_positions_and_of_many(
    model: ViLaMPForConditionalGeneration, examples: Examples
) -> None:
    task, random = MixedTask(model, examples), np.random.default_rng(0)
    videos = [video_of(model, "m" * count) for count in (16, 160, 1600) for _ in range(50)]
    positions = (task._steps(random, videos) * [len(video.embeds) for video in videos]).reshape(3, 50)
    assert positions[0] == pytest.approx(16)  # of so few tokens each has its own
    assert positions.min() >= 16 - 1e-9
    assert positions[1].max() <= 160
    assert positions[2].max() <= 1600
    asked = model.config.video_positions  # what a long video has later is well within what was met
    assert all((row < asked / 2).any() and (row > asked * 2).any() for row in positions[1:])
    unchanged = MixedTask(assemble(random_encoder(), 0, video_positions=None), examples)
    assert (unchanged._steps(random, videos) == 1).all()


def test_a_batchs_loss_is_its_rows(examples: Examples) -> None:
    """Each counts alike, padding for nothing, however many are read at a time.

    Without scaled attention, whose factor follows from the longest row that is read with it.
    """
    model = assemble(random_encoder(), 0, attention_log_base=None)
    task = AlignmentTask(model, examples)
    conversations = [task.conversation(TURNS[:1]), task.conversation(TURNS), task.conversation(TURNS[1:])]
    videos = [video_of(model, kinds, seed) for seed, kinds in enumerate(("kkkkkmkmkmk", "km", "mmmkmm") * 4)]
    conversations, steps = conversations * 4, np.array([0.5, 0.1, 1.0] * 4)
    with torch.no_grad():
        together, accuracy = task.answer_loss(conversations, videos, steps)
        rows = [task.answer_loss(*([part[n]] for part in (conversations, videos)), steps[n : n + 1]) for n in range(12)]
    counts = [sum(label != -100 for label in labels) for _, labels in conversations]
    assert float(together) == pytest.approx(np.mean([float(loss) for loss, _ in rows]), abs=1e-4)
    assert accuracy == pytest.approx(np.average([right for _, right in rows], weights=counts), abs=1e-5)


# --- What each stage trains ------------------------------------------------------------------------------------------


def part(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]


def reached_by(loss: torch.Tensor, task: torch.nn.Module) -> set[str]:
    """The parts of the model (and the Q-Former) that a loss's gradient reaches; all else must be frozen."""
    task.zero_grad()
    loss.backward()
    named = [(n, v) for n, v in task.named_parameters() if v.grad is not None and v.grad.abs().max() > 0]
    assert all(value.requires_grad for _, value in named)
    return {part(name) for name, _ in named}


def reached(task: torch.nn.Module, progress: float = 0.0, seed: int = 0, batch_size: int = 2) -> set[str]:
    loss, accuracy = task(np.random.default_rng(seed), batch_size, progress)
    assert 0 <= accuracy <= 1
    return reached_by(loss, task)


def trainable(task: torch.nn.Module) -> set[str]:
    return {part(name) for name, value in task.named_parameters() if value.requires_grad}


READS = {"keyframe_connector", "keyframe_block", "language_model", "video_newline"}


def test_single_patches_are_frames_of_one_thing(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    """What is asked of them is what the things answer, roll calls included; their tokens stand in the video's order."""
    task = AlignmentTask(model, examples)
    asked = set()
    for seed in range(20):
        random = np.random.default_rng(seed)
        others = 12 if seed else 400  # in long videos hundreds that no question names
        single = task._single_patches(random, True, Lesson(4, others=others, late=bool(seed % 2)))
        things = [next(t for t in examples.bank.scenes[scene].things if t.cell == cell) for scene, cell in single]
        expected = truths([Scene(0, (thing,), 1) for thing in things])
        assert set(questions_about(task._shown_alone(single), random, 1000)) == expected
        asked |= {question.split(" ")[1] for question, _ in expected}
        video, _ = task._video(random, np.array([0, 1]), single)
        assert len(video.embeds) == 2 * 16 + len(single) + 1
        assert (video.frame_of_token[:-1].diff() >= 0).all()
        assert (video.kind_of_token[:-1] == TokenKind.PATCH).sum() == 2 * 16
    assert {"color", "two"} <= asked  # "which color of …", "which two …"
    conversations, videos, _ = task.draw(np.random.default_rng(1), 6, Lesson(4, keyframes_only=0.0, others=400))
    assert max(len(video.embeds) for video in videos) > 200
    asked = [sum(label == task.processor.tokenizer.eos_token_id for label in labels) for _, labels in conversations]
    assert all(1 <= number <= 8 for number in asked)
    assert max(asked) > 3


def test_frames_around_keyframes_tell_nothing_new(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    """They show things of the keyframes' scenes."""
    task = AlignmentTask(model, examples)
    scenes = np.array([3, 8, 11])
    random = np.random.default_rng(1)
    around = task._around(random, scenes)
    assert set(around[:, 0]) <= set(scenes)
    assert (examples.cells[around[:, 0], around[:, 1], 0] >= 0).all()
    assert len(task._around(random, np.array([], int))) == 0


def test_naming_by_hand() -> None:
    """Each token alone, and the mean of each two neighbors, in a circle."""
    tokens = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    names, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), torch.tensor([0, 1, 1])
    alone = torch.stack([-(token @ names.T).log_softmax(0)[label] for token, label in zip(tokens, labels, strict=True)])
    means = []
    for one, other in ((0, 2), (1, 0), (2, 1)):
        says = ((tokens[one] + tokens[other]) / 2 @ names.T).log_softmax(0)
        means.append(-(says[labels[one]] + says[labels[other]]) / 2)
    torch.testing.assert_close(naming_loss(tokens, names, labels), alone.mean() + torch.stack(means).mean())


def test_companions_are_named_in_frames_of_two_things(
    model: ViLaMPForConditionalGeneration, examples: Examples
) -> None:
    task = AlignmentTask(model, examples)
    scenes = np.array([0, len(examples.cells) - 1, 1, len(examples.cells) - 2])
    shapes = examples.cells[scenes, :, 0]
    tokens = torch.randn(len(scenes), 16, 128, generator=torch.Generator().manual_seed(0))
    words = model.get_input_embeddings().weight[task.shape_words].detach()
    names = torch.cat([words[:, 64:], words[:, :64]], dim=1)
    of_pairs, companions = [], []
    for frame, own in zip(tokens, shapes, strict=True):
        places = [place for place, shape in enumerate(own) if shape >= 0]
        if len(places) == 2:
            for place, other in (places, places[::-1]):
                of_pairs.append(frame[place])
                companions.append(int(own[other]))
    assert len(of_pairs) >= 4
    with torch.no_grad():
        expected = naming_loss(torch.stack(of_pairs), names, torch.tensor(companions))
        torch.testing.assert_close(task._companion_loss(tokens, shapes), expected)
        many = (shapes >= 0).sum(axis=1) > 2
        assert task._companion_loss(tokens[torch.from_numpy(many)], shapes[many]) == 0


def test_alignment_grows_harder(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    """Look-up first, then roll calls by themselves and more keyframes, then everything mixed."""
    task = AlignmentTask(model, examples)
    roll_calls = [task._words(f"{question}")[:-1] for question in sorted(task.roll_calls)]

    def drawn(progress: float, keyframes_only: float) -> tuple[list[int], list[int], list[int]]:
        """Of each video: keyframes, questions, and how many of these are roll calls."""
        lesson = replace(Lesson.at(progress, 4), others=12, keyframes_only=keyframes_only)
        conversations, videos, _ = task.draw(np.random.default_rng(4), 24, lesson)
        end = task.processor.tokenizer.eos_token_id
        asked = [sum(label == end for label in labels) for _, labels in conversations]
        text = [" ".join(map(str, ids)) for ids, _ in conversations]
        calls = [sum(line.count(" ".join(map(str, question))) for question in roll_calls) for line in text]
        keyframes = [int((video.kind_of_token == TokenKind.PATCH).sum()) // 16 for video in videos]
        return keyframes, asked, calls

    keyframes, asked, calls = drawn(0.0, 0.0)
    assert set(keyframes) == {0, 1}
    assert sum(calls) == 0
    assert max(asked) == 8
    keyframes, asked, calls = drawn(0.2, 0.45)
    assert any(calls)
    assert all(number in (0, of_video) for number, of_video in zip(calls, asked, strict=True))
    keyframes, asked, calls = drawn(1.0, 0.45)
    assert any(0 < number < of_video for number, of_video in zip(calls, asked, strict=True))
    most = max(max(drawn_keyframes) for drawn_keyframes, _, _ in (drawn(1.0, 0.9), (keyframes, asked, calls)))
    assert 1 <= most <= model.config.max_keyframes


def test_alignment_trains_what_reads(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    task = AlignmentTask(model, examples)
    seen = set().union(*(reached(task, progress=seed % 2, seed=seed) for seed in range(6)))
    assert seen == trainable(task) == READS | {"own_merged_connector"}
    assert not any(value.requires_grad for value in model.merger.parameters())


def test_grounding_trains_the_merge(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    AlignmentTask(model, examples)  # what an earlier stage has trained rests
    task = GroundingTask(model, examples)
    assert reached(task, batch_size=16) == trainable(task) == {"merger"}
    assert all(value.grad is not None for value in model.merger.parameters())
    assert model.merger.temperature.grad.abs() > 0


@pytest.mark.parametrize("grounded", [True, False])
@pytest.mark.parametrize("merger", ["dfm", "mean", "qformer", "drop"])
def test_mixed_trains_all_that_reads(
    merger: str, grounded: bool, model: ViLaMPForConditionalGeneration, examples: Examples
) -> None:
    task = MixedTask(model, examples, QFormerMerger(96, 96), train_merger=not grounded)
    assert trainable(task) == READS | {"own_merged_connector", "qformer"} | (set() if grounded else {"merger"})
    video, conversation = task._video(np.random.default_rng(0), "attribute", 256, "dks", merger)
    loss, _ = task.answer_loss([conversation], [video])
    own = {"qformer": {"qformer"}, "dfm": set() if grounded else {"merger"}}.get(merger, set())
    assert reached_by(loss, task) == READS | own | (set() if merger == "drop" else {"own_merged_connector"})


def test_a_mixed_step(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    """Whatever kind of step is drawn, it trains no more than it should."""
    task = MixedTask(model, examples, QFormerMerger(96, 96))
    limits = [task.alignment_share / 2, task.alignment_share, task.alignment_share + task.drop_share]
    kinds = [int(np.searchsorted(limits, np.random.default_rng(seed).random())) for seed in range(12)]
    assert set(kinds) == {0, 1, 2, 3}
    for seed in (kinds.index(kind) for kind in range(4)):
        parts = reached(task, seed=seed)
        assert "language_model" in parts
        assert parts <= trainable(task)


def test_keyframes_alone_are_asked_what_they_can_answer(
    model: ViLaMPForConditionalGeneration, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times as many videos as short sequences, never a roll call, and two companions most often."""
    task = MixedTask(model, examples)
    asked = []
    drawn = Examples.draw

    def watched(self: Examples, random: np.random.Generator, family: str, num_frames: int) -> Example:
        asked.append(family)
        return drawn(self, random, family, num_frames)

    monkeypatch.setattr(Examples, "draw", watched)
    limits = task.alignment_share, task.alignment_share + task.drop_share
    seed = next(s for s in range(100) if limits[0] < np.random.default_rng(s).random() < limits[1])
    with torch.no_grad():
        task(np.random.default_rng(seed), 20, 0.9)
    assert len(asked) == 60
    assert set(asked) == {"attribute", "companion", "two needles", "two companions"}
    assert max(asked, key=asked.count) == "two companions"


@torch.no_grad()
def test_frames_of_a_scene_lie_together(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    task, bank = AlignmentTask(model, examples), examples.bank
    (scene, cell), *others = task.things[np.unique(task.things[:, 0], return_index=True)[1]][:7]
    single = np.array([(scene, cell)] * 4 + others)
    frames = bank.first_frame[scene] + np.arange(bank.lengths[scene])
    own = model.merged_connector(task.patches(frames)[:, cell])
    for seed in range(5):
        video, _ = task._video(np.random.default_rng(seed), np.array([scene]), single)
        away = torch.cdist(video.embeds, own, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        of_scene = (away < 1e-5) | (video.kind_of_token == TokenKind.PATCH)
        assert of_scene.sum() == 4 + model.config.tokens_per_keyframe
        places = of_scene.nonzero()
        assert places.max() - places.min() + 1 == len(places)


def test_contrastive_learns(examples: Examples) -> None:
    """A few steps on the same batch, and it is matched and named better."""
    task = ContrastiveTask(random_encoder().requires_grad_(True))
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss, _ = task(np.random.default_rng(0), 8, 0.0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.grad is not None for value in task.parameters())


# --- The mixed stage's videos ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("selector", "merger"), [pair[:2] for pair in VIEWS] + [("dks", "drop")])
def test_videos_fill_the_length(
    selector: str,
    merger: str,
    model: ViLaMPForConditionalGeneration,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = MixedTask(model, examples, QFormerMerger(96, 96))
    seen = {}

    def watch(name: str, owner: object) -> None:
        original = getattr(owner, name)

        def watched(*arguments: object) -> object:
            seen[name] = (arguments, original(*arguments))
            return seen[name][1]

        monkeypatch.setattr(owner, name, watched)

    watch("_kept", task)
    watch("draw", examples)
    for seed, (family, length) in enumerate([("attribute", 256), ("roll call", 256), ("two companions", 512)]):
        with torch.no_grad():
            video, (ids, _) = task._video(np.random.default_rng(seed), family, length, selector, merger)
        _, example = seen["draw"]
        (_, _, chosen, wanted), kept = seen["_kept"]
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert len(kept) == wanted
        assert len(video.keyframes) == 4
        assert np.isin(np.flatnonzero(example.needle), kept).all()
        scenes = set(example.scene[chosen].tolist())
        assert np.isin(np.flatnonzero(np.isin(example.scene, list(scenes))), kept).all()
        if selector != "uniform":
            assert kept[video.keyframes.numpy()].tolist() == sorted(chosen.tolist())
        # All other scenes are there from their beginning, and all but one to their end.
        cut = 0
        for number in set(example.scene[kept].tolist()):
            frames = np.flatnonzero(example.scene == number)
            own = kept[example.scene[kept] == number]
            assert own.tolist() == frames[: len(own)].tolist()
            cut += len(own) < len(frames)
        assert cut <= 1
        merged = 0 if merger == "drop" else wanted - 4
        assert len(video.embeds) == 4 * 16 + merged + 1
        if merger != "drop":
            assert len(video.embeds) + len(ids) - 1 == length
        assert example.question in task.query_embeds


def test_views_come_in_their_shares(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    task, random = MixedTask(model, examples, QFormerMerger(96, 96)), np.random.default_rng(0)
    drawn = Counter(task._view(random) for _ in range(2000))
    assert sum(share for *_, share in VIEWS) == pytest.approx(1)
    for selector, merger, share in VIEWS:
        assert drawn[selector, merger] / 2000 == pytest.approx(share, abs=0.03)


# --- A whole training ------------------------------------------------------------------------------------------------

RECIPE = Recipe(
    contrastive=Stage("contrastive", 4, 8, 1e-3),
    alignment=Stage("alignment", 3, 2, 1e-3),
    grounding=Stage("grounding", 5, 8, 1e-3),
    mixed=Stage("mixed", 3, 2, 1e-3),
    num_random=RANDOM,
    num_pairs=PAIRS,
)


def first_frames(encoder: TinyWorldModel, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of `encode_scenes`: the first frame of each scene stands for all of them, which saves seconds."""
    lengths = torch.tensor([scene.num_frames for scene in scenes])
    embeds, patches = encode_scenes(encoder, [replace(scene, num_frames=1) for scene in scenes])
    return embeds.repeat_interleave(lengths, dim=0), patches.repeat_interleave(lengths, dim=0)


encode_scenes = bank_module.encode_scenes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_module, "encode_scenes", first_frames)
        assert train_miniature(folder, 3, recipe=RECIPE) == folder / "full-seed3" / "model"
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_saves_a_model_that_answers(trained: Path) -> None:
    saved = trained / "full-seed3" / "model"
    model = load_checkpoint(saved)
    processor = load_processor(saved, model.config)
    qformer = load_qformer(saved, model)
    selector = AutoModel.from_pretrained(saved / "selector")
    for name, value in selector.vision.state_dict().items():
        assert torch.equal(value, model.vision_tower.state_dict()[name])
        assert torch.equal(value, model.selector.vision.state_dict()[name])
    frames = np.concatenate([render_scene(scene) for scene in bank_scenes(3, 1)])
    inputs = processor(frames, "what color is the star?")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] >= 1
    assert set(processor.batch_decode(answer)[0].split()) <= set(vocabulary())
    # Everything that a stage trains has moved from where it started.
    start = assemble(selector, 3)
    moved = {n.split(".")[0] for n, v in model.named_parameters() if not torch.equal(v, start.get_parameter(n))}
    assert moved == READS | {"own_merged_connector", "merger"}
    torch.manual_seed(3)
    fresh = QFormerMerger(96, 96)
    assert {n for n, v in qformer.named_parameters()} == {n for n, v in fresh.named_parameters()}
    lengths = {name: curve.shape for name, curve in curves(trained, "full", 3).items()}
    assert lengths == {"contrastive": (4, 2), "alignment": (3, 2), "grounding": (5, 2), "mixed": (3, 2)}
    with pytest.raises(ValueError, match="full-seed4/alignment holds no saved state"):
        curves(trained, "full", 4)


def test_a_finished_training_changes_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(trained)
    for task in (ContrastiveTask, AlignmentTask, GroundingTask, MixedTask):
        monkeypatch.setattr(task, "forward", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(bank_module, "encode_scenes", lambda *_: pytest.fail("encoded again"))
    train_miniature(trained, 3, recipe=RECIPE)
    after = files(trained)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == set()


def test_studies_change_what_they_say(trained: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """All share one encoder and bank; the reader's configuration and stages differ."""
    seen = {}

    def watched(model, bank, recipe, folder, seed, study, accelerator) -> QFormerMerger:
        seen[study] = model.config.to_dict(), model.state_dict()
        assert (bank, recipe, folder, seed) == (examples.bank, RECIPE, trained, 0)
        return QFormerMerger(96, 96)

    def one_bank(encoder: TinyWorldModel, *about: object) -> SceneBank:
        assert about == (RANDOM, PAIRS, trained / "encoder" / "bank.safetensors")
        return examples.bank

    monkeypatch.setattr(miniature, "build_bank", one_bank)
    monkeypatch.setattr(miniature, "train_reader", watched)
    monkeypatch.setattr(miniature, "save_miniature", lambda *_: None)
    monkeypatch.setattr(ContrastiveTask, "forward", lambda *_: pytest.fail("the encoder is trained already"))
    for study in STUDIES:
        assert train_miniature(trained, 0, study, recipe=RECIPE) == trained / f"{study}-seed0" / "model"
    full, weights = seen["full"]
    changes = {study: {} for study in STUDIES} | {
        "released_reference": {"reference": "released"},
        "no_keyframe_block": {"keyframe_block": False},
        "no_attention_scaling": {"attention_log_base": None},
        "no_position_interpolation": {"video_positions": None},
    }
    assert seen.keys() == STUDIES.keys()
    for study, (config, state) in seen.items():
        assert {name: value for name, value in config.items() if value != full[name]} == changes[study]
        for name in ("selector.text_head.weight", "vision_tower.patch_network.7.weight"):
            assert torch.equal(state[name], weights[name])
    with pytest.raises(ValueError, match=r"study must be one of 'full', .*, got 'half'"):
        train_miniature(trained, 0, "half", recipe=RECIPE)


def test_without_grounding_the_merge_learns_from_answers(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroundingTask, "forward", lambda *_: pytest.fail("grounded"))
    made = []

    def watched(self: MixedTask, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)
        made.append({name for name, value in self.model.merger.named_parameters() if value.requires_grad})

    original = MixedTask.__init__
    monkeypatch.setattr(MixedTask, "__init__", watched)
    saved = train_miniature(trained, 3, "no_grounding", recipe=RECIPE)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["mixed", "model"]
    assert made == [set(dict(load_checkpoint(saved).merger.named_parameters()))]
    assert set(curves(trained, "no_grounding", 3)) == {"contrastive", "alignment", "mixed"}


@pytest.mark.parametrize("study", ["no_keyframe_block", *(f"peer_{peer}" for peer in PEERS)])
def test_a_study_trains_only_what_is_its_own(study: str, trained: Path) -> None:
    """Another model shares the encoder alone; a peer's own videos train the model after alignment and grounding."""
    is_peer, before = study.startswith("peer"), files(trained / "full-seed3")
    saved = train_miniature(trained, 3, study, recipe=RECIPE)
    assert files(trained / "full-seed3") == before
    own = ["mixed", "model"] if is_peer else ["alignment", "grounding", "mixed", "model"]
    assert sorted(path.name for path in saved.parent.iterdir()) == own
    assert set(curves(trained, study, 3)) == {"contrastive", "alignment", "grounding", "mixed"}
    assert (saved / "qformer").exists() is not is_peer
    full, model = (load_checkpoint(path).state_dict() for path in (trained / "full-seed3" / "model", saved))
    assert torch.equal(full["merger.temperature"], model["merger.temperature"]) is is_peer
    assert not torch.equal(full["keyframe_connector.0.weight"], model["keyframe_connector.0.weight"])


@pytest.mark.parametrize("name", ["model", "curves.png"])
def test_what_no_training_wrote_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / "full-seed3").mkdir()
    (tmp_path / "full-seed3" / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is there, and no training in .*full-seed3/mixed wrote it"):
        train_miniature(tmp_path, 3, recipe=RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["full-seed3"]


def test_peers_ask_the_same_questions(model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
    """Their videos fill the length, and hold up to four times the frames that fit."""
    for peer, (_, per_frame) in PEERS.items():
        task = PeerTask(model, examples, peer)
        for seed in range(5):
            video, (prompt, labels) = task._video(np.random.default_rng(seed), "attribute", 256, "dks", "dfm")
            assert 256 - per_frame < len(video.embeds) + len(prompt) - 1 <= 256
            assert sum(label >= 0 for label in labels) == 3  # a color, early and again, and the end


def test_assembled_around_the_encoder() -> None:
    encoder = random_encoder()
    one, again, other = (assemble(encoder, seed) for seed in (0, 0, 1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.keyframe_connector[0].weight, other.keyframe_connector[0].weight)
    assert torch.equal(one.selector.words.weight, encoder.words.weight)
    assert torch.equal(one.vision_tower.patch_network[0].weight, encoder.vision.patch_network[0].weight)
    assert not one.training
    assert assemble(encoder, 0, max_keyframes=7).config.to_dict() == miniature_config(max_keyframes=7).to_dict()
