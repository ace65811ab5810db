"""Names that files of deploy/ share with the program: metrics, their labels, and settings.

Every expression of the dashboard, the alerts and the autoscaler, and the router's values, name
metrics of prometheus/metrics.txt, with labels that these have; that list is the program's own
(src/metrics/names.rs). Every DIFFUSER_* variable, and every setting of a .toml, is one of
src/config/keys.rs.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
METRIC = re.compile(r"\b((?:diffuser|vllm|process)[_:][a-zA-Z0-9_:]+)(\{[^}]*\})?")
LABEL = re.compile(r"([a-zA-Z_]+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPED = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
# What Prometheus puts beside a series' own labels.
SCRAPED = {"job", "instance", "namespace", "pod", "le"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def known_metrics():
    """{series: labels}"""
    series = {}
    for line in (DEPLOY / "prometheus/metrics.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, kind, *labels = line.split()
            series.update({name + suffix: set(labels) for suffix in SUFFIXES[kind]})
    return series


def expressions():
    """(where, PromQL)"""
    dashboard = json.loads((DEPLOY / "grafana/diffuser-api.json").read_text())
    for panel in dashboard["panels"]:
        yield from ((f"dashboard, {panel['title']}", target["expr"]) for target in panel.get("targets", []))
    for annotation in dashboard["annotations"]["list"]:
        yield f"dashboard, {annotation['name']}", annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"dashboard, ${variable['name']}", variable["definition"]
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]:
        yield from ((f"alert {rule['alert']}", rule["expr"]) for rule in group["rules"])
    scaled = yaml.safe_load((DEPLOY / "kubernetes/base/scaledobject.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        yield "scaledobject.yaml", trigger["metadata"]["query"]
    router = yaml.safe_load((DEPLOY / "kubernetes/overlays/llm-d/router-values.yaml").read_text())
    configuration = yaml.safe_load(router["router"]["epp"]["pluginsCustomConfig"]["diffuser.yaml"])
    for plugin in configuration["plugins"]:
        for engine in plugin.get("parameters", {}).get("engineConfigs", []):
            yield from (("router-values.yaml", each) for key, each in engine.items() if key.endswith("Spec"))


def metric_faults():
    """Metrics and labels that do not exist."""
    series = known_metrics()
    for where, expression in expressions():
        names = METRIC.findall(expression)
        if not names and not re.search(r"\bup\b", expression):
            yield f"{where}: names no metric: {expression}"
        labels = set(SCRAPED)
        for name, selector in names:
            if name not in series:
                yield f"{where}: no metric {name}"
                continue
            labels |= series[name]
            unknown = set(LABEL.findall(selector)) - SCRAPED - series[name]
            yield from (f"{where}: {name} has no label {label}" for label in sorted(unknown))
        grouped = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",")}
        yield from (f"{where}: no label {label}" for label in sorted(grouped - labels - {""}))


def promql_faults():
    """Expressions that Prometheus cannot read: as rules, with Grafana's variables filled in."""
    rules = []
    for where, expression in expressions():
        if not where.startswith("router") and "label_values(" not in expression:
            filled = re.sub(r"\$__rate_interval|\$__interval", "5m", expression)
            filled = re.sub(r"\$[a-z]+", ".*", filled)
            rules.append({"record": f"expression:{len(rules)}", "expr": filled, "labels": {"place": where}})
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}, file)
        file.flush()
        checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    print(f"{len(rules)} expressions")
    if checked.returncode:
        yield checked.stdout + checked.stderr


def source_faults():
    """The list and the program, where they part."""
    source = REPOSITORY / "src/metrics/names.rs"
    if not source.exists():
        yield f"{source}: not there"
        return
    told = set(re.findall(r'"((?:diffuser_|process_|vllm:)[a-z_]+)"', source.read_text()))
    listed = {
        line.split()[0] for line in (DEPLOY / "prometheus/metrics.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    yield from (f"metrics.txt: the program has no {name}" for name in sorted(listed - told))
    yield from (f"metrics.txt lacks {name}" for name in sorted(told - listed))


def setting_faults():
    """Variables and settings that the program would refuse at its start."""
    source = "".join(file.read_text() for file in sorted((REPOSITORY / "src/config").glob("*.rs")))
    variables = set(re.findall(r'"((?:DIFFUSER|HF)_[A-Z0-9_]+)"', source))
    names = set(re.findall(r': "([a-z_]+(?:\.[a-z_]+)+)"', source))
    used = 0
    files = [REPOSITORY / name for name in ("Dockerfile", "Dockerfile.cuda", "compose.yaml")]
    files += [file for file in DEPLOY.rglob("*") if file.is_file() and file.parent.name != "checks"]
    for file in files:
        for variable in sorted(set(re.findall(r"\b(?:DIFFUSER|HF)_[A-Z0-9_]+[A-Z0-9]\b", file.read_text()))):
            used += 1
            if variable not in variables:
                yield f"{file.relative_to(REPOSITORY)}: no setting {variable}"
    for file in DEPLOY.rglob("diffuser.toml"):
        for section, settings in tomllib.loads(file.read_text()).items():
            for setting in settings:
                used += 1
                if f"{section}.{setting}" not in names:
                    yield f"{file.relative_to(REPOSITORY)}: no setting {section}.{setting}"
    print(f"{used} uses of settings")


def main():
    faults = [*metric_faults(), *promql_faults(), *source_faults(), *setting_faults()]
    sys.exit("\n".join(faults) or 0)


main()
