"""Damaged videos, each sampled in a process of its own, and what came of it."""

import json
import os
import re
import resource
import signal
import traceback
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from video_files import read_numbers

from fuzz.bases import BASES, FRAMES, RATE
from fuzz.damage import damaged, spoilt_frames
from vilamp_lite.video import SampledVideo, VideoError

SECONDS, LIMIT, MUCH = 60, 4 << 30, 1 << 30  # a case may take so long, have so much memory, and is to use far less
OWN = list(range(FRAMES))  # the number that each sample shows in an intact file
UNREADABLE = -1

FINE = ("right", "refused", "warned")
SILENT = ("short", "late", "missing", "pixels")  # where the file could have told
WORST = ("crash", "hang", "over 1 GB")
VERDICTS = (*FINE, "too few", "too many", "allowed", *SILENT, *WORST)

# Of all warnings, those of damage.
TELLS = re.compile("missing|damaged|nearest intact|cut short|may be wrong|come at once")


class Case(NamedTuple):
    """One damaged file and what came of it."""

    seed: int
    base: str
    damage: str
    verdict: str
    detail: str


def run_case(seed: int, folder: Path) -> Case:
    """Damage one of the bases in the folder and sample it; the file stays in the folder if it is worth a look."""
    base = folder / "bases" / BASES[seed % len(BASES)]
    damage, data = damaged(base, seed)
    path = folder / f"{seed}_{base.name}"
    path.write_bytes(data)
    verdict, detail = judged(watched(path), damage, base.name, spoilt_frames(base, data))
    if verdict in (*FINE, "allowed"):
        path.unlink()
    return Case(seed, base.name, damage, verdict, detail)


def watched(path: Path) -> dict[str, Any]:
    """Sample a file in a child process; what it reports, or how it ended."""
    reader, writer = os.pipe()
    before = psutil.Process().memory_info()  # which the child begins with
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)  # ends the process in whatever library it hangs
            resource.setrlimit(resource.RLIMIT_AS, (before.vms + LIMIT, before.vms + LIMIT))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with os.fdopen(writer, "w") as pipe:
                json.dump(sampled(path), pipe)
            os._exit(0)
        finally:
            os._exit(1)  # whatever is raised ends here, and not in what the parent does
    os.close(writer)
    with os.fdopen(reader) as pipe:
        report = pipe.read()
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return {"worst": "hang", "how": f"{SECONDS} s"}
    if status:
        return {"worst": "crash", "how": f"status {status}"}
    if (more := used.ru_maxrss * 1024 - before.rss) > MUCH:
        return {"worst": "over 1 GB", "how": f"{more >> 20} MiB"}
    return json.loads(report)


def sampled(path: Path) -> dict[str, Any]:
    """What someone gets who samples a file at its own rate: the number on each picture, and all words of it."""
    report: dict[str, Any] = {"numbers": [], "positions": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            video = SampledVideo(path, fps=RATE)
            for batch in video.batches():
                report["numbers"] += read_numbers(batch.frames)
                report["positions"] += batch.indices.tolist()
        except VideoError as error:
            return {"error": str(error)}
        except BaseException:
            return {"worst": "crash", "how": traceback.format_exc()}
    words = [str(warning.message) for warning in caught]
    return report | {"frames": video.info.num_frames, "seconds": video.info.duration, "warnings": words}


def judged(report: dict[str, Any], damage: str, base: str, spoilt: Collection[int] = ()) -> tuple[str, str]:
    """Judge what came of a case.

    Args:
        report: What `watched` says.
        damage: Name of the damage.
        base: Name of the file that was damaged.
        spoilt: Frames whose pictures it may have changed.

    Returns:
        One of `VERDICTS`, and why.
    """
    if "worst" in report:
        return report["worst"], report["how"]
    if "error" in report:
        return "refused", report["error"]
    report = report | {"numbers": [number if number in OWN else UNREADABLE for number in report["numbers"]]}
    numbers, words = report["numbers"], " ".join(report["warnings"])
    if numbers == OWN and not words:
        return "right", ""
    wrong = misplaced(report, spoilt)
    missing, extra = max(FRAMES - len(numbers), 0), max(len(numbers) - FRAMES, 0)
    unreadable = numbers.count(UNREADABLE)
    detail = f"{wrong} misplaced, {missing} missing, {extra} extra, {unreadable} unreadable; {words}"
    if TELLS.search(words):
        stated = sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of [\d,]+ samples", words))
        untold = missing if ends_untold(damage, base) else 0
        if stated < wrong + missing + extra - untold:
            return "too few", detail
        # What stands in for a lost frame may itself be spoilt, or be that very frame, at another time.
        samples = zip(numbers, report["positions"], OWN, strict=False)
        others = sum(not number == at == own for number, at, own in samples)
        return "too many" if stated > others + missing + extra else "warned", detail
    kind = silent_kind(report, wrong)
    return "allowed" if is_allowed(kind, report, damage, base) else kind, f"{kind}: {detail}"


def misplaced(report: dict[str, Any], spoilt: Collection[int]) -> int:
    """How many samples show a frame that is not theirs.

    Where every frame stands at its time, a sample shows its own, and its bytes or those that it builds upon have
    changed, a wrong picture is the decoder's to notice: a few spoilt ones can even be read as a number.
    """
    whole = report["frames"] == FRAMES and abs(report["seconds"] - FRAMES / RATE) < 0.5 / RATE
    samples = zip(report["numbers"], report["positions"], OWN, strict=False)
    return sum(
        number not in (own, UNREADABLE) and not (whole and at == own and own in spoilt) for number, at, own in samples
    )


def silent_kind(report: dict[str, Any], wrong: int) -> str:
    """How the samples differ from those of the whole file."""
    numbers = report["numbers"]
    if len(numbers) > FRAMES or (wrong and numbers[0] > 0):
        return "late"
    if wrong:
        return "missing"
    return "short" if len(numbers) < FRAMES else "pixels"


def ends_untold(damage: str, base: str) -> bool:
    """Whether the file may end early, and states no length."""
    return base.endswith(".ts") and damage in ("cut_short", "cut_end", "cut_out")


def is_allowed(kind: str, report: dict[str, Any], damage: str, base: str) -> bool:
    """Whether the file itself can't tell. This list may not grow."""
    numbers = report["numbers"]
    if damage == "itself":
        return numbers == 2 * OWN
    if kind == "pixels":  # the decoder passed them; FFmpeg counts these two's small headers to the packets
        return damage != "header" or base.endswith((".gif", ".ts"))
    if kind == "short":
        return ends_untold(damage, base)
    if damage not in ("flip", "header"):
        return False
    return report["frames"] == FRAMES and (_in_order if base.endswith(".gif") else _at_another_rate)(numbers)


def _in_order(numbers: list[int]) -> bool:
    """Whether every frame is shown, in a GIF, where each has a length of its own beside the colour that it leaves out.

    Where that colour is another, pictures are spoilt.
    """
    readable = [number for number in numbers if number != UNREADABLE]
    return sorted(readable) == readable and len(set(readable)) + len(numbers) - len(readable) >= FRAMES


def _at_another_rate(numbers: list[int]) -> bool:
    """Whether one other rate explains all samples; the last frame may stand to the end that another header states."""
    last = numbers.index(numbers[-1])
    if last < FRAMES / 10 or numbers[0] or numbers[-1] != FRAMES - 1 or set(numbers[last:]) != {FRAMES - 1}:
        return False
    samples = range(1, last + 1)
    least = max((numbers[sample] - 0.51) / sample for sample in samples)
    most = min((numbers[sample] + 0.51) / sample for sample in samples)
    return least <= most and not (least < 1.02 and most > 0.98)  # which one frame too many would explain as well
