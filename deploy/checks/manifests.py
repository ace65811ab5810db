"""Builds base and overlays of deploy/kubernetes, and looks at what comes out.

    manifests.py UNPACKED_KUSTOMIZE OUTPUT

Kubernetes' own resources are held against its schemas here, strictly; those of operators are
written to OUTPUT, for operators.mjs. And what no schema knows: that names lead somewhere, that a
pod's times agree with the program's settings.
"""

import json
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml
from kustomize import Kustomize

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deploy/kubernetes"
# The oldest that knows a sleep before the end, and the newest there is a schema of.
VERSIONS = ("1.30", "1.37")
OPERATORS = ("keda.sh/", "monitoring.coreos.com/")
HOUR_S = 3600


def of_kind(resources, kind):
    """The resources of a kind."""
    return [resource for resource in resources if resource["kind"] == kind]


def schema_faults(resource):
    """What Kubernetes would not take, or not know."""
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            yield f"{resource['kind']} {place}: {error.message} (Kubernetes {version})"


def selected(selector, labels):
    """Whether a selector means a pod with these labels; an empty one means every pod."""
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels.items()


def reference_faults(resources):
    """Selectors, ports and names that lead nowhere."""
    deployment = of_kind(resources, "Deployment")[0]
    template = deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    ports = {port["name"] for port in pod["containers"][0]["ports"]}

    if not selected(deployment["spec"]["selector"], labels):
        yield "Deployment: its selector does not mean its pods"
    for kind, place in (
        ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector"), ("PodMonitor", "selector")
    ):
        for resource in of_kind(resources, kind):
            if not selected(resource["spec"][place], labels):
                yield f"{kind}: {place} does not mean the pods"
    for service in of_kind(resources, "Service"):
        if not service["spec"]["selector"].items() <= labels.items():
            yield "Service: its selector does not mean the pods"
    used = [port["targetPort"] for each in of_kind(resources, "Service") for port in each["spec"]["ports"]]
    used += [
        end["port"] for each in of_kind(resources, "PodMonitor") for end in each["spec"]["podMetricsEndpoints"]
    ]
    used += [
        port["port"] for each in of_kind(resources, "NetworkPolicy")
        for rule in each["spec"]["ingress"] for port in rule["ports"]
    ]
    used += [pod["containers"][0][probe]["httpGet"]["port"] for probe in PROBES]
    yield from (f"port {port!r} is none of the pod's" for port in used if port not in ports)

    names = {(each["kind"], each["metadata"]["name"]) for each in resources}
    for volume in pod["volumes"]:
        for kind, source, key in (
            ("ConfigMap", "configMap", "name"), ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName")
        ):
            if source in volume and (kind, volume[source][key]) not in names:
                yield f"volume {volume['name']}: no {kind} {volume[source][key]}"
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    if mounts != {volume["name"] for volume in pod["volumes"]}:
        yield "volumes and volumeMounts are not the same"
    for scaled in of_kind(resources, "ScaledObject"):
        if ("Deployment", scaled["spec"]["scaleTargetRef"]["name"]) not in names:
            yield "ScaledObject: its target is none of these"


PROBES = {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}


def pod_faults(resources):
    """Times and rights of the pod that do not fit the program."""
    pod = of_kind(resources, "Deployment")[0]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    settings = tomllib.loads(of_kind(resources, "ConfigMap")[0]["data"]["diffuser.toml"])

    for probe, path in PROBES.items():
        if server[probe]["httpGet"]["path"] != path:
            yield f"{probe}: does not ask {path}"
    start = server["startupProbe"]
    if start["periodSeconds"] * start["failureThreshold"] < HOUR_S:
        yield "startupProbe: allows less than an hour"
    needed = settings["server"]["grace_s"] + server["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] < needed + 10:
        yield f"terminationGracePeriodSeconds: the program may take {needed} s"
    if pod.get("enableServiceLinks") is not False:
        yield "enableServiceLinks: variables of Services would be taken for settings"
    security = server["securityContext"]
    if not (
        pod["securityContext"]["runAsNonRoot"] and security["readOnlyRootFilesystem"]
        and security["capabilities"]["drop"] == ["ALL"] and security["allowPrivilegeEscalation"] is False
    ):
        yield "securityContext: more rights than are needed"
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    told = {"http": settings["server"]["port"]}
    if "port" in settings.get("metrics", {}):
        told["metrics"] = settings["metrics"]["port"]
    if ports != told:
        yield f"ports of the pod {ports}, of the settings {told}"


def router_faults(resources):
    """Values for llm-d's router that do not mean these pods."""
    router = yaml.safe_load((KUBERNETES / "overlays/llm-d/router-values.yaml").read_text())["router"]
    template = of_kind(resources, "Deployment")[0]["spec"]["template"]
    labels = template["metadata"]["labels"]
    if not selected(router["modelServers"], labels):
        yield "router-values.yaml: matchLabels do not mean the pods"
    http = next(port for port in template["spec"]["containers"][0]["ports"] if port["name"] == "http")
    if router["modelServers"]["targetPorts"] != [{"number": http["containerPort"]}]:
        yield "router-values.yaml: targetPorts are not the pods'"
    picker = yaml.safe_load(router["epp"]["pluginsCustomConfig"][router["epp"]["pluginsConfigFile"]])
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in picker["plugins"]}
    engines = [engine["name"] for engine in plugins["core-metrics-extractor"]["engineConfigs"]]
    if labels["llm-d.ai/engine-type"] not in engines:
        yield "router-values.yaml: no metrics for the pods' engine-type"
    named = {plugin["pluginRef"] for profile in picker["schedulingProfiles"] for plugin in profile["plugins"]}
    yield from (f"router-values.yaml: no plugin {name}" for name in sorted(named - plugins.keys()))


def jobs_faults(resources):
    """Triggers of the example for workers that lead nowhere, or that keep a pod for ever."""
    names = {each["metadata"]["name"] for each in of_kind(resources, "TriggerAuthentication")}
    for scaled in of_kind(resources, "ScaledObject"):
        if scaled["spec"]["minReplicaCount"] != 0:
            yield "ScaledObject: does not go to zero"
        for trigger in scaled["spec"]["triggers"]:
            if trigger["authenticationRef"]["name"] not in names:
                yield f"ScaledObject: no TriggerAuthentication {trigger['authenticationRef']['name']}"
            if float(trigger["metadata"]["activationTargetQueryValue"]) != 0:
                yield "ScaledObject: a single job does not wake it"


def main():
    kustomize, output = Kustomize(sys.argv[1]), Path(sys.argv[2])
    resources = kustomize.build(KUBERNETES / "jobs")
    faults = [f"jobs: {fault}" for fault in jobs_faults(resources)]
    custom = [{"folder": "jobs", "resource": resource} for resource in resources]
    folders = ["base", *sorted(f"overlays/{each.name}" for each in (KUBERNETES / "overlays").iterdir())]
    for folder in folders:
        try:
            resources = kustomize.build(KUBERNETES / folder)
        except ValueError as error:
            faults.append(f"{folder}: {error}")
            continue
        found = []
        for resource in resources:
            if resource["apiVersion"].startswith(OPERATORS):
                custom.append({"folder": folder, "resource": resource})
            else:
                found += schema_faults(resource)
        found += [*reference_faults(resources), *pod_faults(resources)]
        if folder == "overlays/llm-d":
            found += router_faults(resources)
        limits = of_kind(resources, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["resources"]
        if ("nvidia.com/gpu" in limits["limits"]) == (folder == "overlays/cpu-demo"):
            found.append("a card where there should be none, or none where there should be one")
        faults += [f"{folder}: {fault}" for fault in found]
        print(f"{folder}: {len(resources)} resources")
    output.write_text(json.dumps(custom))
    sys.exit("\n".join(faults) or 0)


main()
