"""The files of an evaluation: what goes in comes out, what is broken is named, and the page stands alone and trusts nothing."""

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Branching, Metric
from tokenworld.evaluation.report import files, specs, svg
from tokenworld.evaluation.report import page as pages
from tokenworld.evaluation.report.drawings import DRAWINGS, draw
from tokenworld.evaluation.report.filmstrips import MOST
from tokenworld.evaluation.report.findings import findings
from tokenworld.evaluation.report.verdict import verdict
from tokenworld.evaluation.statistics import reliability

EVIL = "<script>alert('x')</script>\"onload=&"


def metric(id, value, half=0.01, **more):
    ci = None if value is None else (value - half, value + half)
    return Metric(id, value=value, **({"name": f"name of {id}", "ci": ci, "n_clusters": 50, "n_samples": 1000} | more))


def frame(rng, side=10, channels=4):
    return rng.integers(0, 256, (channels, side, side), dtype=np.uint8)


def pictures(rng, words="a state", side=10):
    """Every picture that a page can draw."""
    t = np.arange(1, 9.0)
    rate = dict(probability=np.array([0.1, 0.9]), frequency=np.array([0.2, 0.8]), low=np.array([0.1, 0.7]),
                high=np.array([0.3, 0.9]), count=np.array([10, 10]))  # fmt: skip
    film = Branching(words, 2.5, rng.integers(0, 256, (3, 3, side, side), dtype=np.uint8),
                     rng.integers(0, 256, (9, 3, side, side), dtype=np.uint8), np.full(9, 1 / 9), np.full(9, 0.01),
                     rng.integers(0, 256, (4, 3, side, side), dtype=np.uint8), rng.random((2, 2)) > 0.5)  # fmt: skip
    curve = dict(model=t, low=t - 0.1, high=t + 0.1, copy=t + 1)
    return {
        "plane": {"others": [(words, 3.0, -9.0)]}, "top_reliability": rate, "hazard_reliability": rate,
        "surprise": rng.random((3, 4)), "filmstrips": [film] * 9,
        "effects": {name: rng.random((3, 3)) for name in ("true", "model", "cross")} | {"actions": [words] * 3},
        "drift": curve, "distance": curve | {"second": t * 0, "self_feeding": np.where(t < 3, np.nan, t)},
        "survival": {"real": 1 / t, "model": t * 0 + 1}, "reward_confusion": np.array([[1, 2, 3], [4, 5, 6], [0, 0, 0]]),
        "transfer": {"names": [words, "b"], "mean": np.array([[1, 2.0], [3, np.nan]])},
        "support": {"do": t, "low": t - 0.1, "high": t + 0.1, "behavior": t * np.nan, "count": t, "support": t},
        "policies": {"names": [words, "b"], "real": np.array([0.0, 1]), "model": np.array([0.5, 2]),
                     "real_ci": np.array([[-1, 1], [0, 2.0]]), "model_ci": np.array([[0, 1], [1, 3.0]])},
        "undos": [(words, 0.3, frame(rng), frame(rng))],
        "memory": {"delay": t, "accuracy": 1 / t, "low": 1 / t - 0.1, "high": 1 / t + 0.1},
    }  # fmt: skip


def made(words="Game", side=10, **more):
    metrics = [
        metric("calibration.gap", 0.8), metric("calibration.branch_gap", 0.7, tier="B"),
        metric("calibration.excess_entropy", 0.3, tier="B"),
        metric("next_frame.kl", 1.0, tier="B", floor=9.0, ceiling=0.0), metric("rollouts.valid_horizon", 5.0, tier="B"),
        metric("terminations.brier_skill", 0.5, floor=0.0, ceiling=1.0, direction="higher"),
        metric("action_sensitivity.saved_bits", 0.0),
        Metric("rewards.recall", "rewards", None, status="not_applicable", reason=f"there are no rewards {words}"),
        metric("code_length.bits", 3.0, values=np.arange(4.0), clusters=np.array(["b", "b", "a", "c"]), unit="bits/frame"),
        metric("policies.spearman", 0.5, tier="C", experimental=True),
        metric("M9.other", 1.0, name=words, unit=words, reason=words),
    ]  # fmt: skip
    found = findings(metrics)
    keys = dict(
        metrics=metrics, findings=found, verdict=verdict(metrics, found),
        pictures=pictures(np.random.default_rng(0), words, side),
        provenance={"env_id": words, "weights": {"tokenizer": words}, "seed": np.int64(3), "out": Path("runs/a")},
        capabilities={"A": words, "B": "branches", "C": None}, state=np.arange(4, dtype=np.uint64) + 2**63,
        selftest={words: {"passed": np.True_, "states": 8}},
    )  # fmt: skip
    return files.Report(**(keys | more))


# ----------------------------------------------------------------------------------------------- report.json, states.npz


def test_a_report_comes_back_as_it_was_written(tmp_path):
    files.write(made(), tmp_path / "deep" / "er")
    told, rows = files.read(tmp_path / "deep" / "er")
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["report.html", "report.json", "states.npz"]
    assert told["schema"] == files.SCHEMA and told["verdict"] == made().verdict and told["findings"] == made().findings
    assert told["provenance"] == {"env_id": "Game", "weights": {"tokenizer": "Game"}, "seed": 3, "out": "runs/a"}
    assert told["selftest"] == {"Game": {"passed": True, "states": 8}} and told["capabilities"]["C"] is None
    entry = {entry["id"]: entry for entry in told["metrics"]}["next_frame.kl"]
    assert entry == {
        "id": "next_frame.kl", "alias": "M3.kl", "name": "name of next_frame.kl", "value": 1.0, "unit": "",
        "direction": "lower", "ci": [0.99, 1.01],
        "level": 0.95, "n_clusters": 50, "n_samples": 1000, "floor": 9.0, "ceiling": 0.0, "skill": pytest.approx(8 / 9),
        "tier": "B", "status": "ok", "reason": "", "experimental": False, "seconds": 0.0,
    }  # fmt: skip
    assert rows["code_length.bits"].tolist() == [0, 1, 2, 3] and rows["code_length.bits/cluster"].tolist() == [1, 1, 0, 2]
    assert rows["state"].tolist() == [2**63 + i for i in range(4)] and rows["state"].dtype == np.uint64
    files.write(made(verdict="Another."), tmp_path / "deep" / "er")
    assert files.read(tmp_path / "deep" / "er")[0]["verdict"] == "Another."


def test_states_hold_no_pickles(tmp_path):
    odd = metric("action_effects.error", 0.5, values=np.array([1, 2], object),
                 clusters=np.array([None, "a"], object).astype(str),
                 states=np.array([7, 8]))  # fmt: skip
    files.write(made(metrics=[odd]), tmp_path)
    with np.load(tmp_path / "states.npz", allow_pickle=False) as file:
        assert {name: file[name].dtype.kind for name in file.files} == {
            "state": "u", "action_effects.error": "f", "action_effects.error/cluster": "i", "action_effects.error/state": "u",
        }  # fmt: skip


def test_json_is_strict_whatever_a_metric_holds(tmp_path):
    odd = [metric("M1.a", math.nan), metric("M1.b", math.inf), metric("M1.c", 1.0, floor=math.nan, ceiling=math.inf),
           replace(metric("M1.d", 1.0), ci=(0.0, math.inf)), metric("M1.e", np.float32(0.5))]  # fmt: skip
    files.write(made(metrics=odd, findings=[], provenance={"env_id": "g", "loss": math.nan}), tmp_path)
    told, _ = files.read(tmp_path)
    found = {entry["id"]: entry for entry in told["metrics"]}
    assert found["M1.a"]["status"] == found["M1.b"]["status"] == "invalid" and found["M1.a"]["value"] is None
    assert "no finite number" in found["M1.b"]["reason"] and found["M1.c"]["floor"] is found["M1.c"]["ceiling"] is None
    assert found["M1.c"]["value"] == 1 and found["M1.d"]["ci"] is None and told["provenance"]["loss"] is None
    assert not re.search(r'(points|x|y|width|cx|cy)="[^"]*(nan|inf)', (tmp_path / "report.html").read_text())
    (tmp_path / "report.json").write_text((tmp_path / "report.json").read_text().replace('"value": 0.5', '"value": NaN'))
    with pytest.raises(UserError, match="NaN is no JSON number"):
        files.read(tmp_path)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    files.write(made(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(files.json, "dumps", full)
    with pytest.raises(UserError, match="no space left|OSError"):
        files.write(made(verdict="Another."), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def entry(told, id):
    return next(entry for entry in told["metrics"] if entry["id"] == id)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: r.pop("findings"), "it has no findings"),
        (lambda r: r.update(schema=3), "it has schema 3, expected 2"),
        (lambda r: r.update(metrics={}), "metrics is dict, expected list"),
        (lambda r: r["metrics"].append(3), "a metric has no id"),
        (lambda r: r["metrics"].append(r["metrics"][0]), "metric calibration.gap is there 2 times"),
        (lambda r: entry(r, "next_frame.kl").update(status="good"),
         "metric next_frame.kl has status 'good', expected one of ok, underpowered"),
        (lambda r: entry(r, "next_frame.kl").update(direction="up"),
         "next_frame.kl has direction 'up', expected one of lower, higher"),
        (lambda r: entry(r, "next_frame.kl").update(tier="D"), "next_frame.kl has tier 'D'"),
        (lambda r: entry(r, "next_frame.kl").update(value="1"), "next_frame.kl has value '1', expected a number or null"),
        (lambda r: entry(r, "next_frame.kl").update(value=True), "next_frame.kl has value True, expected a number or null"),
        (lambda r: entry(r, "next_frame.kl").update(value=None), "next_frame.kl has status ok and value None"),
        (lambda r: entry(r, "next_frame.kl").update(ci=[2, 1]),
         r"next_frame.kl has the interval \[2, 1\], expected \[low, high\] or null"),
        (lambda r: entry(r, "next_frame.kl").update(ci=[1]), r"next_frame.kl has the interval \[1\]"),
        (lambda r: entry(r, "next_frame.kl").pop("unit"), "next_frame.kl has unit None, expected str"),
        (lambda r: entry(r, "rewards.recall").update(reason=""), "was not measured and gives no reason"),
        (lambda r: r["findings"][0].pop("code"), "a finding has no code or text"),
        (lambda r: r["findings"][0].update(severity="bad"), "finding OVERCONFIDENT has severity 'bad', expected one of fault"),
        (lambda r: r["findings"][0].pop("established"), "OVERCONFIDENT has established None, expected true, false or null"),
        (lambda r: r["findings"][0].update(established=1), "OVERCONFIDENT has established 1"),
        (lambda r: r["findings"][0].update(threshold=3), "OVERCONFIDENT has threshold 3, expected words"),
        (lambda r: r["findings"][0].update(evidence=["M99"]), r"has evidence \['M99'\], which are not all metrics"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_report_is_named(change, said, tmp_path):
    files.write(made(), tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert files.validate(told) == []
    change(told)
    wrong = files.validate(told)
    assert len(wrong) == 1 and re.search(said, wrong[0])
    (tmp_path / "report.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=f"report.json is no report of this version: .*{said}.*: evaluate again"):
        files.read(tmp_path)


def test_no_file_makes_validate_stumble(tmp_path):
    """Whatever stands anywhere in it, the answer is sentences."""
    files.write(made(), tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())

    def places(x):
        for key in x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ():
            yield x, key
            yield from places(x[key])

    for box, key in list(places(told)):
        kept = box[key]
        for odd in (None, [], {}, "", -1, 1e999, [[]], {"id": []}, True):
            box[key] = odd
            assert all(isinstance(what, str) for what in files.validate(told))
        box[key] = kept
    assert files.validate(told) == []


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "null", '{"schema": 1}'])
def test_what_is_no_report_is_refused(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match="evaluate again"):
        files.read(tmp_path)


def test_broken_states_are_refused(tmp_path):
    files.write(made(), tmp_path)
    path = tmp_path / "states.npz"
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (b"", b"PK", (tmp_path / "one.npy").read_bytes(), whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="states.npz cannot be read"):
            files.read(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="states.npz cannot be read"):
        files.read(tmp_path)
    x, pickled = np.zeros(3), np.array([{}], object)
    for arrays, said in (({"M1.a": pickled, "M1.a/cluster": np.zeros(1)}, "cannot be read"),
                         ({"M1.a": x}, "without M1.a/cluster"),
                         ({"M1.a": x, "M1.a/cluster": x[:2]}, "one number for each row"),
                         ({"M1.a": x[None], "M1.a/cluster": x}, "one number for each row"),
                         ({"M1.a": x.astype(str), "M1.a/cluster": x}, "one number for each row")):  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=said):
            files.read(tmp_path)


# -------------------------------------------------------------------------------------------------------------- the page


class Read(HTMLParser):
    """Tags, attributes and words of a page; every tag must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_trusts_nothing():
    page = pages.page(made(EVIL))
    read = Read(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image"} & set(read.tags)
    for tag, key, value in read.attributes:
        assert not key.startswith("on") and key not in ("href", "xlink:href", "srcset", "data")
        assert key != "src" or tag == "img" and value.startswith("data:image/png;base64,")
        assert "url(" not in (value or "") or value == "url(#none)"
    assert "@import" not in page and "url(" not in pages.STYLE and "http-equiv" not in page
    assert {value for _, key, value in read.attributes if (value or "").startswith("http")} == {"http://www.w3.org/2000/svg"}
    assert sum(EVIL in words for words in read.words) > 10  # as words, where it was told
    assert len(page.encode()) < 5_000_000


def test_every_picture_and_number_is_drawn_and_explained():
    read = Read(pages.page(made()))
    words = " ".join(read.words)
    assert set(DRAWINGS) == {spec.picture for spec in specs.specs()} - {""}
    assert "one from 1.00 to 2.00; two" in draw("a_b", {"a_b": {"one": [1, 2.0], "two": [0, 0]}}, {}, "said")
    assert "<b>A b</b>" in draw("a_b", {"a_b": np.eye(2)}, {}) and draw("a_b", {}, {}) == ""
    assert set(pictures(np.random.default_rng(0))) == set(DRAWINGS) and "Not drawn" not in words
    for one in made().metrics:
        assert one.id in words and one.name in words
    titles = [section.title for section in specs.sections()]
    assert titles[0] == "From floor to ceiling" and len(titles) == 9
    places = [words.index(title) for title in (*titles, "Where this comes from")]
    assert words.index(made().verdict) < places[0] and places == sorted(places)
    charted = read.tags.count("svg")
    assert charted == read.tags.count("desc") == read.tags.count("title") - 1 and charted >= 18
    assert read.tags.count("img") == sum(key == "alt" and bool(value) for _, key, value in read.attributes)


def test_every_metric_has_a_sentence():
    for spec in specs.specs():
        assert len(spec.explanation) > 15 and spec.explanation.endswith("."), spec.id
        assert spec.direction == "none" or spec.alias.startswith("M15") or spec.source, spec.id
    assert specs.explain("action_effects.error@4") == specs.explain("action_effects.error") != ""
    assert specs.explain("other.x") == ""


def test_ids_are_words_and_aliases_are_the_ids_of_schema_1():
    ids, aliases = ([getattr(spec, name) for spec in specs.specs()] for name in ("id", "alias"))
    aliases = [alias for alias in aliases if alias]  # a metric that is newer than schema 1 has none
    assert len(set(ids)) == len(ids) >= 101 and len(set(aliases)) == len(aliases) == 95
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z0-9]+(_[a-z0-9]+)*", id) for id in ids)
    assert all(re.fullmatch(r"M\d+\.\w+", alias) for alias in aliases)
    for alias, id in (("M2.dcal", "calibration.gap"), ("M2.dh", "calibration.excess_entropy"), ("M12.mmrv", "policies.mmrv"),
                      ("M3.off_support", "next_frame.impossible_mass"), ("M6.shuffled", "action_sensitivity.saved_bits"),
                      ("M15.c2st@4", "proxies.c2st@4")):  # fmt: skip
        assert specs.id_of(alias) == id and specs.alias_of(id) == alias
    assert specs.id_of("M99.x") == "M99.x" and specs.alias_of("other.x") == ""
    assert specs.translate("M7.sensitivity above 0.8, M99.x") == "action_effects.size_ratio above 0.8, M99.x"


def test_metrics_are_chosen_by_id_family_alias_or_row():
    assert specs.select("M2.dcal") == specs.select("calibration.gap") == ["calibration.gap"]
    assert specs.select("policies.mmrv,M2") == [*specs.select("calibration"), "policies.mmrv"]
    assert specs.select("M2,M1")[0] == "code_length.bits"  # in the order of the report
    assert {spec.family for spec in map(specs.spec_of, specs.select("M5"))} == {"rewards", "terminations"}
    with pytest.raises(UserError, match=r"metrics: got calibration.gab, expected a metric id. Did you mean calibration.gap\?"):
        specs.select("calibration.gap,calibration.gab")


def test_the_metric_table_is_the_documented_one():
    root = Path(__file__).resolve().parent.parent
    table, changes = ((root / name).read_text(encoding="utf-8") for name in ("docs/metrics.md", "CHANGELOG.md"))
    assert table == specs.table(), "python -m tokenworld.evaluation.report.specs > docs/metrics.md"
    for spec in specs.specs():
        assert f"| `{spec.id}` | {spec.alias} | **{spec.name}" in table
        assert not spec.alias or f"| `{spec.alias}` | `{spec.id}` |" in changes


def test_what_is_missing_says_why():
    tiers = {"A": "held-out episodes", "B": None, "C": None}
    bare = made(pictures={}, capabilities=tiers, metrics=[made().metrics[7]], selftest=None)
    words = " ".join(Read(pages.page(bare)).words)
    assert "Not drawn: Effects of actions: it needs a simulator that can be branched." in words
    assert "Policies: it needs policies and their returns in the world" in words
    assert "Surprise by position: it was not part of this evaluation" in words
    assert "Rewards that were predicted, not measured, there are no rewards Game" in words.replace(" \n", " ")
    assert "The world's next frame, not measured" in words and 'fill="url(#none)"' in pages.page(bare)
    assert "Not measured: it needs a simulator that can be branched." in words and "self-test not run" in words


def test_many_large_pictures_do_not_make_a_large_file():
    page = pages.page(made(side=300))
    assert "data:image/png" in page and len(page) < 2_000_000  # shrunk to 96 pixels at most
    rng = np.random.default_rng(0)
    noise = [Branching("s", 1.0, *(rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for n in (4, 6)), np.full(6, 1 / 6),
                       np.full(6, 0.1), rng.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)) for _ in range(8)]  # fmt: skip
    page = pages.page(made(pictures={"filmstrips": noise}))
    assert len(page) < MOST + 200_000 < 5_000_000


def test_the_ladder_tells_what_is_measured_from_what_can_be_relied_on():
    tiers = {"A": "held-out episodes", "B": "branches", "C": None}
    told = [metric("next_frame.kl", 14.4, unit="bits/frame", tier="B", ceiling=0.0),
            metric("rewards.bias", -0.25, half=0.5, direction="zero", floor=0.5, ceiling=0.0),
            metric("action_effects.error", 0.2, tier="B", floor=1.0, ceiling=0.0, status="underpowered",
                   reason="few")]  # fmt: skip
    assert told[1].skill == 0.5 and told[1].skill_ci == (-0.5, 1.0) and told[0].skill is told[0].skill_ci is None
    assert told[2].skill_ci == pytest.approx((0.79, 0.81))
    words = " ".join(Read(pages.page(made(metrics=told, findings=[], capabilities=tiers))).words)
    assert words.count("name of next_frame.kl") == 1  # in the table only: it has no floor
    text = " ".join(words.split())
    assert "Rewards promised as they come. name of rewards.bias: -0.25; floor 0.5, best 0" in text
    assert "Right effects of actions. name of action_effects.error: 0.2; floor 1, best 0, few episodes" in text


@pytest.mark.parametrize("value, bar", [(0.0, svg.GREEN), (1.6, svg.ORANGE)])
def test_a_rung_names_what_is_good_and_shows_the_number_itself(value, bar):
    """Of a perfect and of a bad model: mass on impossible frames of 0 is no '100% impossible'."""
    told = [metric("next_frame.impossible_mass", value, half=0.0, tier="B", floor=1.0, ceiling=0.0)]
    page = pages.page(made(metrics=told, findings=[], pictures={}))
    words = " ".join(" ".join(Read(page).words).split())
    assert f"Mass on possible frames. name of next_frame.impossible_mass: {value:.3g}; floor 1, best 0" in words
    assert f'fill="{bar}"' in page


@pytest.mark.parametrize("is_good", [True, False])
def test_the_labels_of_a_perfect_and_of_a_bad_model_are_the_same_but_for_the_value(is_good):
    """Every label names what is good, then the value between its anchors, never a percentage."""
    floor, best = 0.375, 0.75
    metrics = [metric(spec.id, best if is_good else floor, name=spec.name, unit=spec.unit, tier=spec.tier, floor=floor,
                      ceiling=best) for spec in specs.specs() if spec.quality]  # fmt: skip
    page = pages.page(made(metrics=metrics, findings=[], pictures={}))
    ladders = " ".join(re.findall(r"<desc>share of the way from floor to ceiling: (.*?)</desc>", page))
    assert "%" not in ladders and ladders.count("; floor 0.375, best 0.75") == len(metrics) > 35
    for one in metrics:
        quality = specs.spec_of(one.id).quality
        label = quality if quality == one.name else f"{quality}. {one.name}"
        assert html.escape(f"{label}: {one.value}; floor 0.375, best 0.75") in ladders


def test_every_rung_has_a_quality():
    """Of all numbers that findings place between floor and ceiling."""
    placed = {rule.metric for rule in specs.rules() if rule.bound.skill or rule.bound.of_floor}
    expected = {spec.id for spec in specs.specs() if spec.is_expected}
    assert placed | expected <= {spec.id for spec in specs.specs() if spec.quality}
    assert {"next_frame.kl", "action_effects.error", "rewards.recall"} <= expected


def test_findings_are_listed_by_what_is_known_of_them():
    words = " ".join(Read(pages.page(made())).words)
    assert "Overconfident (+0.80 bits a frame)." in words and "fault, from calibration.gap" in words
    assert "; limit: above 0.05" in words and "harmless" not in words
    excluded = words[words.index("Checked and excluded, the whole interval is on the good side of the limit: ") :]
    assert "underconfident (below -0.05)" in excluded
    open_ = [metric("calibration.gap", 0.0, half=5.0)]
    words = " ".join(Read(pages.page(made(metrics=open_, findings=findings(open_)))).words)
    assert "nor excluded: overconfident (above 0.05), underconfident (below -0.05), n=1,000, 50 episodes." in words


# ---------------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1, 20, [5, 10, 15, 20]), (-0.7, 0.7, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
     (0, 12000, [0, 2000, 4000, 6000, 8000, 10000, 12000]), (-4, 0, [-4, -3, -2, -1, 0])],
)  # fmt: skip
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_marks_are_where_the_numbers_are():
    axes = svg.Axes((0, 10), (0, 2), "x", "y")
    assert (axes.px(0), axes.px(10)) == (svg.LEFT, svg.W - svg.RIGHT)
    assert (axes.py(0), axes.py(2)) == (axes.low, axes.top) and axes.py(1) == (axes.low + axes.top) / 2
    assert axes.px(99) == axes.px(10) and axes.py(-99) == axes.py(0)  # at the edge, never outside
    axes.curve([0, 5, 6, 10], [0, 1, math.nan, 2], svg.BLUE)
    assert axes.drawn[-2].count(",") == 2 + 0 and axes.drawn[-1].count(",") == 1  # broken where there is no number
    ladder = svg.ladder([("good", 0.5, (0.4, 0.6), ""), ("bad", -0.1, (-0.2, -0.05), ""), ("open", 0.1, (-0.1, 0.3), ""),
                            ("few", 0.5, (0.4, 0.6), "few episodes"), ("none", None, None, "not measured")], "t")  # fmt: skip
    assert [ladder.count(f'fill="{color}"') for color in (svg.GREEN, svg.ORANGE, svg.GRAY)] == [1, 1, 2]
    assert ">none, not measured<" in ladder and ">few, few episodes<" in ladder and ladder.count("url(#none)") == 1
    low = [float(x) for x in re.findall(r'<rect x="([\d.]+)" y="\d+" width="[\d.]+" height="13"', ladder)]
    assert low[0] == low[2] == low[3] > low[1]  # from the floor, and below it


def test_charts_take_what_metrics_return():
    p = np.random.default_rng(0).random(500)
    bins = reliability.reliability(p, np.random.default_rng(1).random(500) < p)
    assert svg.reliability_chart(bins, "t", "w").count("<circle") == reliability.BINS
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.full((30, 30), 1e-9)):
        assert "nan" not in svg.heat_map(values, "t", "u")
    flat = svg.curves("t", "x", "y", [1, 2], [("none", [math.nan, math.nan], svg.BLUE, "")])
    assert flat.startswith("<svg") and "nan," not in flat
    one = svg.curves("t", "x", "y", [1], [("one", [0.0], svg.BLUE, "")], mark=(1.0, "m"))
    assert one.startswith("<svg")
    alike = svg.scatter("t", "x", "y", ["a", "b"], [1.0, 1.0], [1.0, 1.0])
    assert alike.count("<circle") == 2
