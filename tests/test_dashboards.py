"""The Grafana dashboard and the Prometheus alerts ask for metrics, labels and reasons that exist."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.web.metrics import PipelineMetrics
from tests.support.fakes import Bench, FakeSource, camera

ROOT = Path(__file__).resolve().parents[1]
ALERTS = ROOT / "docker" / "prometheus-alerts.yaml"
DASHBOARD = json.loads((ROOT / "docker" / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed")


def panel_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def all_queries() -> list[str]:
    return [*panel_queries(), *(rule["expr"] for rule in RULES)]


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """Metrics as they are served, with their labels."""

    async def collect() -> dict[str, set[str]]:
        async with Bench([camera(FakeSource("gate", count=1))]) as bench:
            await bench.run()
            families = list(PipelineMetrics(bench.pipeline).collect())
        ends = {"counter": "_total", "histogram": "_bucket"}
        return {
            family.name + ends.get(family.type, ""): {
                *getattr(family, "_labelnames"),  # noqa: B009
                *(["le"] if family.type == "histogram" else []),
            }
            for family in families
        }

    return asyncio.run(collect())


def matchers(query: str) -> Iterator[tuple[str, str]]:
    """Every (metric, label) that a query selects by."""
    for name, inside in re.findall(r"(groundstream_\w+)\{([^}]*)\}", query):
        yield from ((name, label) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))


def test_every_metric_that_is_asked_for_exists(metrics: dict[str, set[str]]) -> None:
    asked = {name for query in all_queries() for name in re.findall(r"groundstream_\w+", query)}
    assert asked - metrics.keys() == set()
    wrong = [(name, label) for query in all_queries() for name, label in matchers(query) if label not in metrics[name]]
    assert wrong == []


def test_the_dashboard_shows_every_metric(metrics: dict[str, set[str]]) -> None:
    shown = {name for query in panel_queries() for name in re.findall(r"groundstream_\w+", query)}
    assert metrics.keys() - shown == set()


def test_every_label_in_a_text_is_one_that_the_query_keeps(metrics: dict[str, set[str]]) -> None:
    for rule in RULES:
        known = {"instance", "job"}.union(*(metrics[name] for name in re.findall(r"groundstream_\w+", rule["expr"])))
        texts = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= known, rule["alert"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            names = re.findall(r"groundstream_\w+", target["expr"])
            known = {"instance", "job"}.union(*(metrics[name] for name in names))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known, panel["title"]


def test_every_reason_that_is_asked_for_is_counted_somewhere() -> None:
    asked = {
        reason
        for query in all_queries()
        for words in re.findall(r'reason=~?"([^"$]*)"', query)
        for reason in words.split("|")
    }
    sources = "".join(path.read_text() for path in (ROOT / "streamer").rglob("*.py"))
    assert asked
    assert [reason for reason in sorted(asked) if f'"{reason}"' not in sources] == []


def test_the_variables_of_the_dashboard_come_from_labels_that_exist(metrics: dict[str, set[str]]) -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == variables.keys()
    for name in used - {"datasource"}:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"])
        assert found is not None
        assert found[2] in metrics[found[1]]


def test_the_panels_lie_side_by_side_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))


def promtool(*arguments: str | Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_alerts_and_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    promtool("check", "rules", ALERTS)
    queries = [
        query.replace("$__rate_interval", "5m").replace("$stream", ".*").replace("$sink", ".*")
        for query in panel_queries()
    ]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


ONE = 'instance="a",stream="gate"'
FIRING: list[tuple[str, dict[str, str]]] = [
    ("GroundstreamStreamDown", {f"groundstream_stream_live{{{ONE}}}": "0x30"}),
    ("GroundstreamStorageDown", {'groundstream_storage_up{instance="a"}': "0x30"}),
    (
        "GroundstreamStreamNotAnalysed",
        {f"groundstream_stream_live{{{ONE}}}": "1x30", f"groundstream_frames_analysed_total{{{ONE}}}": "7x30"},
    ),
    (
        "GroundstreamFramesOverload",
        {
            f"groundstream_frames_received_total{{{ONE}}}": "0+1500x30",
            f'groundstream_frames_dropped_total{{{ONE},reason="stale"}}': "0+600x30",
            f'groundstream_frames_dropped_total{{{ONE},reason="overload"}}': "0+600x30",
        },
    ),
    (
        "GroundstreamFramesLost",
        {
            f"groundstream_frames_received_total{{{ONE}}}": "0+1500x30",
            f'groundstream_frames_dropped_total{{{ONE},reason="corrupt"}}': "0+150x30",
        },
    ),
    ("GroundstreamFramesOld", {f"groundstream_frame_age_seconds{{{ONE}}}": "9x30"}),
    ("GroundstreamEventsDropped", {f'groundstream_events_dropped_total{{{ONE},reason="full"}}': "0x20 5x10"}),
    ("GroundstreamSinkDown", {'groundstream_sink_up{instance="a",sink="kafka"}': "0x30"}),
    ("GroundstreamSinkBacklogGrowing", {'groundstream_sink_backlog{instance="a",sink="kafka"}': "20000+100x40"}),
    ("GroundstreamSinkDeadLetters", {'groundstream_sink_dead_letters_total{instance="a",sink="kafka"}': "0x20 1x10"}),
    (
        "GroundstreamSpoolNearlyFull",
        {
            'groundstream_spool_bytes{instance="a"}': "900x30",
            'groundstream_spool_limit_bytes{instance="a"}': "1000x30",
        },
    ),
    ("GroundstreamSpoolForgottenEvents", {'groundstream_spool_forgotten_events{instance="a"}': "3x100"}),
    ("GroundstreamEventLoopLate", {'groundstream_loop_lag_seconds{instance="a",quantile="0.99"}': "0.5x30"}),
    ("GroundstreamLeasesOld", {'groundstream_lease_age_seconds{instance="a"}': "5x30"}),
    ("GroundstreamAbsent", {"up": "0x30"}),
]
"""Each alert with series, a sample a minute, under which it fires."""

HEALTHY = {
    'groundstream_storage_up{instance="a"}': "1x100",
    'groundstream_lease_age_seconds{instance="a"}': "0.9x100",
    f"groundstream_stream_live{{{ONE}}}": "1x100",
    f"groundstream_frames_received_total{{{ONE}}}": "0+1500x100",
    f"groundstream_frames_analysed_total{{{ONE}}}": "0+600x100",
    f'groundstream_frames_dropped_total{{{ONE},reason="not_sampled"}}': "0+900x100",
    f"groundstream_frame_age_seconds{{{ONE}}}": "0.2x100",
    f'groundstream_events_dropped_total{{{ONE},reason="full"}}': "4x100",
    'groundstream_sink_up{instance="a",sink="kafka"}': "1x100",
    'groundstream_sink_backlog{instance="a",sink="kafka"}': "20x100",
    'groundstream_sink_dead_letters_total{instance="a",sink="kafka"}': "2x100",
    'groundstream_spool_bytes{instance="a"}': "10x100",
    'groundstream_spool_limit_bytes{instance="a"}': "1000x100",
    'groundstream_spool_forgotten_events{instance="a"}': "0x100",
    'groundstream_loop_lag_seconds{instance="a",quantile="0.99"}': "0.01x100",
}


def evaluate(folder: Path, series: dict[str, str], queries: list[dict[str, Any]]) -> None:
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": queries,
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)


@needs_promtool
@pytest.mark.parametrize(("alert", "series"), FIRING, ids=[alert for alert, _ in FIRING])
def test_an_alert_fires_when_it_should(alert: str, series: dict[str, str], tmp_path: Path) -> None:
    minutes = 95 if alert == "GroundstreamSpoolForgottenEvents" else 35 if "Backlog" in alert else 25
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    evaluate(tmp_path, series, [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": [{"value": 1}]}])


@needs_promtool
def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    evaluate(tmp_path, HEALTHY, [{"expr": "count(ALERTS)", "eval_time": "90m", "exp_samples": []}])


def test_every_alert_has_a_case() -> None:
    assert {alert for alert, _ in FIRING} == {rule["alert"] for rule in RULES}
