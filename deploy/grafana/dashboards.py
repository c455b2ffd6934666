#!/usr/bin/env python3
"""Writes the dashboards in dashboards/: what stands on them is said here, Grafana's form of it is not worth a person's time.

    python3 deploy/grafana/dashboards.py [--check]      --check writes nothing and fails where a file differs
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent / "dashboards"
SCORE = 'route="score"'
MODEL = 'model=~"$model"'
COLUMNS, HEIGHT = 24, 8


def quantile(of, metric, labels, by="le"):
    return f"histogram_quantile({of}, sum by ({by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def rate(metric, labels="", by=""):
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[$__rate_interval]))"


# title, kind, unit, [(expression, legend)], what it says
DASHBOARDS = {
    "service": ("Mainstay: service", [
        ("Scores a second", "timeseries", "reqps", [(rate("mainstay_http_requests_total", SCORE, "status"), "{{status}}")], "By status."),
        ("Time of a score", "timeseries", "s", [(quantile(q, "mainstay_http_request_duration_seconds", SCORE), name) for q, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))],
         "From the head of the request to the head of the answer. The objective is 99 % within 100 ms."),
        ("Budget of slow scores, used in 30 days' measure", "timeseries", "none", [(f"mainstay:score_slow:ratio{w} / 0.01", w) for w in ("5m", "1h", "6h", "3d")], "1 uses it up just in time; 14.4 over an hour wakes somebody."),
        ("Budget of faults", "timeseries", "none", [(f"mainstay:score_faults:ratio{w} / 0.001", w) for w in ("5m", "1h", "6h", "3d")], "As for slow scores."),
        ("p99 of each stage", "timeseries", "s", [(quantile(0.99, "mainstay_stage_duration_seconds", "", "le, stage"), "{{stage}}")], "Where the time goes."),
        ("Problems", "timeseries", "reqps", [(rate("mainstay_problems_total", "", "code"), "{{code}}")], "By code; each bad row of a batch counts."),
        ("Requests in flight, connections", "timeseries", "none", [("sum(mainstay_http_requests_in_flight)", "in flight"), ("sum(mainstay_http_connections)", "connections")], ""),
        ("Ledger: records a second", "timeseries", "ops", [(rate("mainstay_ledger_records_total"), "records")], ""),
        ("Ledger: in wait, and failed", "timeseries", "none", [("sum(mainstay_ledger_records_waiting)", "waiting"), ("sum(increase(mainstay_ledger_commits_failed_total[5m]))", "failed commits in 5 min")], "Failed commits are refused decisions."),
        ("Processor", "timeseries", "none", [("sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{instance}}")], "Cores in use."),
        ("Memory", "timeseries", "bytes", [("process_resident_memory_bytes", "{{instance}}")], ""),
        ("File descriptors", "timeseries", "percentunit", [("process_open_fds / process_max_fds", "{{instance}}")], "Of those that the process may open."),
    ]),
    "model": ("Mainstay: models", [
        ("What stands where", "table", "none", [(f"mainstay_model_info{{{MODEL}}} == 1", "{{model}} {{version}}: {{role}}")], ""),
        ("Share of the challenger", "timeseries", "percentunit", [(f"mainstay_rollout_share{{{MODEL}}}", "{{model}} {{exposure}}")], "0 without a rollout."),
        ("Guardrails", "timeseries", "none", [(f"mainstay_rollout_guardrail{{{MODEL}}}", "{{model}} {{guardrail}}")], "1 passes, 0 holds, -1 is broken."),
        ("Moves of rollouts by themselves", "timeseries", "none", [(f"mainstay_rollout_moves_total{{{MODEL}}}", "{{model}} {{verb}}")], ""),
        ("Drift", "timeseries", "none", [(f"topk(8, mainstay_drift_psi{{{MODEL}}})", "{{version}} {{feature}}")], "Population stability index of the features that are farthest from their baseline. Over 0.1 is worth a look, over 0.25 an alarm, if there are enough values."),
        ("Drift: what is to be made of it", "timeseries", "none", [(f"mainstay_drift_level{{{MODEL}}} > 1", "{{version}} {{feature}}")], "2 warn, 3 alarm; what is ok, or too few to tell, is not shown."),
        ("AUC", "timeseries", "none", [(f'mainstay_quality{{{MODEL},metric="auc"}}', "{{version}} {{bound}}")], "With the ends of its interval."),
        ("Precision at the top 20 %", "timeseries", "percentunit", [(f'mainstay_quality{{{MODEL},metric="precision_at_20"}}', "{{version}} {{bound}}")], "With the ends of its interval."),
        ("Slope of the calibration", "timeseries", "none", [(f'mainstay_quality{{{MODEL},metric="calibration_slope"}}', "{{version}} {{bound}}")], "1 at best; under it scores are too extreme."),
        ("Stale features", "timeseries", "percentunit", [(f"mainstay_features_stale_share{{{MODEL}}}", "{{model}} {{version}}")], "Share of requests with features over a day old, of those that say."),
        ("Requests for a new model that have not arrived", "timeseries", "none", [("sum by (state) (mainstay_retraining_undelivered)", "{{state}}")], "Where new models are asked for (`retraining.url`)."),
        ("Time of one row at the probe", "timeseries", "s", [(f"mainstay_model_probe_row_seconds{{{MODEL}}}", "{{version}} p{{percentile}}")], ""),
    ]),
    "decisions": ("Mainstay: decisions", [
        ("Decisions by tier", "timeseries", "ops", [(rate("mainstay_decisions_total", MODEL, "tier"), "{{tier}}")], ""),
        ("Share of each tier", "timeseries", "percentunit", [(f'{rate("mainstay_decisions_total", MODEL, "tier")} / ignoring (tier) group_left {rate("mainstay_decisions_total", MODEL)}', "{{tier}}")], ""),
        ("Decisions by version", "timeseries", "ops", [(rate("mainstay_decisions_total", MODEL, "model, version"), "{{model}} {{version}}")], "Who answers."),
        ("Least parity ratio of the audit groups", "timeseries", "none", [(f"mainstay_fairness_parity_min{{{MODEL}}}", "{{model}}")], "The four-fifths rule asks for 0.8."),
        ("Audit groups that surely fail", "timeseries", "none", [(f"mainstay_fairness_groups_failed{{{MODEL}}}", "{{model}}")], ""),
        ("Outcomes on record", "timeseries", "ops", [(rate("mainstay_outcomes_total", "", "fact"), "{{fact}}")], ""),
    ]),
    "impact": ("Mainstay: business impact", [
        (title, "timeseries", unit, [(f'mainstay_kpi{{{MODEL},kpi="{kpi}"}}', "{{model}} {{bound}}")], f"{text} The middle line is the figure, the outer ones the interval at 95 %.")
        for kpi, title, unit, text in (
            ("churn_reduction", "Reduction of churn against the holdout", "percentunit", "By how much less of the treated leave than of those who are kept from intervention."),
            ("churn_rate_treated", "Churn of the treated", "percentunit", ""), ("churn_rate_held_out", "Churn of the holdout", "percentunit", ""),
            ("net_value_saved", "Net value saved", "none", "What would have been lost with the customers kept, less the cost of interventions."),
            ("customers_kept", "Customers kept", "none", ""), ("conversion_rate", "Conversion rate", "percentunit", ""),
            ("revenue_per_order", "Revenue per order", "none", ""), ("cost_per_decision", "Cost per decision", "none", ""))
    ] + [
        ("Budget spent, and time gone by", "timeseries", "percentunit", [(f"mainstay_budget_spent{{{MODEL}}} / (mainstay_budget_amount{{{MODEL}}} > 0)", "{{model}} spent"), (f"mainstay_budget_elapsed_ratio{{{MODEL}}}", "{{model}} gone by")], ""),
    ]),
}


def panel(number, title, kind, unit, targets, text):
    of_row = 2
    return {
        "id": number + 1, "title": title, "type": kind, "description": text, "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": {"x": number % of_row * (COLUMNS // of_row), "y": number // of_row * HEIGHT, "w": COLUMNS // of_row, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [{"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend, "instant": kind == "table"} for at, (expression, legend) in enumerate(targets)],
    }


def dashboard(name, title, panels):
    variables = [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
    if name != "service":
        variables.append({"name": "model", "type": "query", "label": "Model", "multi": True, "includeAll": True, "allValue": ".*", "refresh": 2,
                          "datasource": {"type": "prometheus", "uid": "${source}"}, "query": {"query": "label_values(mainstay_model_info, model)", "refId": "A"},
                          "current": {"text": "All", "value": "$__all"}})
    return {"uid": f"mainstay-{name}", "title": title, "tags": ["mainstay"], "timezone": "utc", "schemaVersion": 39, "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"}, "templating": {"list": variables}, "panels": [panel(at, *one) for at, one in enumerate(panels)]}


def main(check):
    differing = []
    for name, (title, panels) in DASHBOARDS.items():
        path, text = HERE / f"{name}.json", json.dumps(dashboard(name, title, panels), indent=1) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differing.append(path.name)
    print("\n".join(f"differs: {name}" for name in differing) or f"{len(DASHBOARDS)} dashboards")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
