"""What Dockerfile, compose file and Kubernetes manifests say is what the code says: read as plain YAML, nothing is run.

Held against schemas, too: those of Kubernetes itself (kubernetes-validate) and of KEDA's own definition; skipped, saying
why, where these cannot be had.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from streamtask.app import load_app
from streamtask.cli import app as command_line
from streamtask.config import Settings
from streamtask.query_service import gate, metrics, server
from streamtask.worker import endpoint, process, supervisor

yaml = pytest.importorskip("yaml", reason="pip install 'streamtask-kafka[dev]'")

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
KEDA = "github.com/kedacore/keda/v2@v2.18.3"
BY_THEMSELVES = {"kustomization.yaml", "namespace.yaml", "keda.yaml"}  # not part of `kubectl apply -k`
ENDS_S = process.GRACE_SPARE_S + supervisor.KILL_AFTER_S + process.FAILOVER_S  # of a worker, beyond the drain's grace
SERVICE_ENDS_S = server.STREAMS_STOP_S + server.STOP_S
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(MANIFESTS.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for _, d in documents() if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def pods() -> dict[str, dict[str, Any]]:
    """The pod specs by component."""
    with_pods = [d["spec"]["template"] for _, d in documents() if "template" in d.get("spec", {})]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in with_pods}


def container(component: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = pods()[component]["spec"]["containers"]
    assert len(found) == 1
    return found[0]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def filled_in(text: str) -> str:
    """With the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return float(found[1])


def from_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> Settings:
    """The settings that a process sees with these variables; every name is one of a setting."""
    for name, value in values.items():
        assert name.removeprefix("STREAMTASK_").lower() in Settings.model_fields, f"{name} is no setting"
        monkeypatch.setenv(name, value)
    return Settings()


def parses(words: list[str]) -> list[str]:
    """Names of the commands; fails on a command, option or argument that does not exist."""
    return parsed(words)[0]


def parsed(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Names of the commands, and the arguments and options of the last one."""
    command: Any = typer.main.get_command(command_line)
    names: list[str] = []
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
        names.append(name)
    given = command.make_context(name, words).params
    if names == ["worker"]:
        load_app(given["app"])
    return names, given


@pytest.fixture(autouse=True)
def _no_settings_of_somebodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STREAMTASK_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    return from_environment(monkeypatch, one("ConfigMap", "streamtask")["data"])


def test_kustomize_names_every_manifest_that_needs_nothing_else() -> None:
    (listed,) = (d["resources"] for name, d in documents() if name == "kustomization.yaml")
    assert set(listed) == {file.name for file in MANIFESTS.glob("*.yaml")} - BY_THEMSELVES


def test_the_config_map_holds_settings_that_the_code_takes(settings: Settings) -> None:
    assert settings.metrics_host == "0.0.0.0", "probes come from outside of the pod"
    assert settings.bootstrap()


@pytest.mark.parametrize("component", ["topics", "worker", "query"])
def test_every_pod_reads_the_config_map_and_runs_a_command_that_exists(component: str) -> None:
    of = container(component)
    sources = [source.get("configMapRef", source.get("secretRef"))["name"] for source in of["envFrom"]]
    assert sources == ["streamtask", "streamtask"]
    assert parses(of["args"])[0] == {"topics": "topics", "worker": "worker", "query": "serve"}[component]
    if component == "query":
        assert not of["envFrom"][1]["secretRef"].get("optional"), "without a key it would not listen"


def test_where_containers_are_counted_each_is_one_worker_process() -> None:
    """Kubernetes probes and scrapes one port of a pod, KEDA counts pods up to the partitions, compose has WORKERS; and
    without a limit of CPU, each container would start a process per core of its machine."""
    for words in (container("worker")["args"], shlex.split(filled_in(compose()["worker"]["command"]))):
        names, given = parsed(words)
        assert (names, given["processes"]) == (["worker"], 1)


@pytest.mark.parametrize("component", ["topics", "worker", "query"])
def test_no_pod_is_root_or_writes_to_its_image_or_takes_names_from_services(component: str) -> None:
    spec, of = pods()[component]["spec"], container(component)
    uid = re.search(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert uid
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == int(uid[1])
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert of["securityContext"] == confined
    assert spec["enableServiceLinks"] is False, "a service called streamtask would set STREAMTASK_PORT"
    assert {mount["mountPath"] for mount in of["volumeMounts"]} >= {"/tmp"}
    assert set(of["resources"]) == {"requests", "limits"}
    assert "cpu" not in of["resources"]["limits"], "a throttled worker misses its heartbeats"


def probes_of(of: dict[str, Any]) -> dict[str, tuple[str, int]]:
    ports = {port["name"]: port["containerPort"] for port in of["ports"]}
    found = {name: of[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    return {name: (get["path"], ports[get["port"]]) for name, get in found.items()}


def routes_of_a_worker() -> set[str]:
    return set(re.findall(r'^            "(/\w+)": lambda', Path(endpoint.__file__).read_text(), re.M))


def test_probes_of_a_worker_ask_what_a_worker_answers(settings: Settings) -> None:
    asked = probes_of(container("worker"))
    port = settings.metrics_port
    assert asked == {"startup": ("/health", port), "readiness": ("/ready", port), "liveness": ("/health", port)}
    assert {path for path, _ in asked.values()} <= routes_of_a_worker()
    annotations = pods()["worker"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    assert annotations["prometheus.io/path"] in routes_of_a_worker()


def test_probes_of_the_query_service_ask_what_it_answers_without_a_key(settings: Settings) -> None:
    asked = probes_of(container("query"))
    port = settings.port
    assert asked == {"startup": ("/health", port), "readiness": ("/ready", port), "liveness": ("/health", port)}
    assert {path for path, _ in asked.values()} <= gate.OPEN_PATHS
    (service,) = one("Service", "streamtask-query")["spec"]["ports"]
    assert service["targetPort"] in {one["name"] for one in container("query")["ports"]}


def test_liveness_is_patient_enough_for_a_failover(settings: Settings) -> None:
    probe = container("worker")["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60 > 3 * settings.session_timeout_ms / 1_000


def test_a_pod_has_the_time_that_its_end_takes(settings: Settings) -> None:
    worker, query = pods()["worker"]["spec"], pods()["query"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= settings.drain_grace_s + ENDS_S
    before = float(container("query")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert query["terminationGracePeriodSeconds"] >= before + SERVICE_ENDS_S
    pages = {page: (ROOT / "docs" / page).read_text() for page in ("operations.md", "how-to/kubernetes.md")}
    assert "`drain_grace_s` + 20" in pages["operations.md"]
    assert ENDS_S <= 20
    assert f"up to {ENDS_S:.0f} s more" in pages["how-to/kubernetes.md"]


def probe_of(component: str, name: str) -> str:
    probe = container(component)[f"{name}Probe"]
    return f"{probe['periodSeconds']} s × {probe.get('failureThreshold', 3)}"


def test_the_runbooks_table_is_what_the_manifests_say() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    found = re.search(r"<!-- manifests -->\n(.*?)<!-- /manifests -->", page, re.S)
    assert found
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()[2:]]
    said = {(where, what.replace("`", "")): value for where, what, value, _ in rows}
    config = one("ConfigMap", "streamtask")["data"]
    spec = {name: pods()[name]["spec"] for name in ("worker", "query")}
    update = one("Deployment", "streamtask-worker")["spec"]["strategy"]["rollingUpdate"]
    budget = {name: one("PodDisruptionBudget", f"streamtask-{name}")["spec"] for name in spec}
    limits = container("worker")["resources"]["limits"]
    assert said == {
        ("config", "STREAMTASK_DRAIN_GRACE_S"): config["STREAMTASK_DRAIN_GRACE_S"],
        ("config", "STREAMTASK_HEALTH_STALLED_S"): config["STREAMTASK_HEALTH_STALLED_S"],
        ("worker", "terminationGracePeriodSeconds"): str(spec["worker"]["terminationGracePeriodSeconds"]),
        **{("worker", f"{name}Probe"): probe_of("worker", name) for name in ("startup", "liveness", "readiness")},
        ("worker", "limits.memory"): limits["memory"],
        ("worker", "maxSurge, maxUnavailable"): f"{update['maxSurge']}, {update['maxUnavailable']}",
        ("query", "terminationGracePeriodSeconds"): str(spec["query"]["terminationGracePeriodSeconds"]),
        ("query", "readinessProbe"): probe_of("query", "readiness"),
        **{(f"{name}-budget", "maxUnavailable"): str(budget[name]["maxUnavailable"]) for name in budget},
    }
    patience = container("worker")["livenessProbe"]
    assert f"{patience['periodSeconds'] * patience['failureThreshold']} s, longer" in found[1]


def test_selectors_select() -> None:
    labels = {component: pod["metadata"]["labels"] for component, pod in pods().items()}
    for _, document in documents():
        selector = document.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            component = document["metadata"]["name"].removeprefix("streamtask-")
            assert wanted.items() <= labels[component].items()
            assert not any(wanted.items() <= of.items() for other, of in labels.items() if other != component)
    budgets = [d["metadata"]["name"] for _, d in documents() if d["kind"] == "PodDisruptionBudget"]
    assert budgets == ["streamtask-worker", "streamtask-query"]


def test_keda_scales_the_workers_by_metrics_that_are_there(settings: Settings) -> None:
    spec = one("ScaledObject", "streamtask-worker")["spec"]
    assert one("Deployment", spec["scaleTargetRef"]["name"]) is not None
    assert spec["maxReplicaCount"] == settings.partitions, "one worker more would stand by"
    tables = {**endpoint.METRICS, **metrics.METRICS}
    queries = [trigger["metadata"]["query"] for trigger in spec["triggers"]]
    names = [re.findall(r"streamtask_\w+", query) for query in queries]
    assert names == [["streamtask_log_backlog_tasks"], ["streamtask_view_tasks"]], "the true backlog; from zero"
    for query, (name,) in zip(queries, names, strict=True):
        kind, labels, _ = tables[name]
        assert kind == "gauge"
        assert set(re.findall(r"(\w+)=", query)) <= set(labels)
    assert {trigger["type"] for trigger in spec["triggers"]} == {"prometheus"}, "not by the group's lag"


# --- Compose and image ------------------------------------------------------------------------------------------------


def test_compose_runs_commands_that_exist_with_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose()
    ours = {name: of for name, of in services.items() if name != "kafka"}
    commands = {name: parses(shlex.split(filled_in(of["command"]))) for name, of in ours.items()}
    assert commands == {"topics": ["topics", "create"], "worker": ["worker"], "query": ["serve"], "census": ["demo"]}
    for of in ours.values():
        from_environment(monkeypatch, of["environment"])
    for name, of in services.items():
        published = [filled_in(port) for port in of.get("ports", ())]
        assert all(port.startswith("127.0.0.1:") for port in published), f"{name}: {published}"
    if "--insecure" in services["query"]["command"]:
        assert services["query"]["ports"] == ["127.0.0.1:${HTTP_PORT:-8080}:8080"]


def test_compose_waits_for_what_is_needed_and_stops_with_patience() -> None:
    services = compose()
    for name in ("worker", "query"):
        assert services[name]["depends_on"]["topics"]["condition"] == "service_completed_successfully"
        assert services[name]["healthcheck"]["test"][-2:] == ["/health", "/ready"]
    assert services["topics"]["depends_on"]["kafka"]["condition"] == "service_healthy"
    grace_s = Settings.model_fields["drain_grace_s"].default
    assert seconds(services["worker"]["stop_grace_period"]) >= grace_s + ENDS_S
    assert seconds(services["query"]["stop_grace_period"]) >= SERVICE_ENDS_S


def test_the_image_listens_where_compose_and_kubernetes_ask(settings: Settings) -> None:
    assert f"STREAMTASK_METRICS_PORT={settings.metrics_port}" in DOCKERFILE
    script = "/usr/local/bin/streamtask-healthcheck"
    assert f"COPY deploy/healthcheck.py {script}" in DOCKERFILE
    assert f'CMD ["python3", "{script}"]' in DOCKERFILE
    for name in ("worker", "query"):
        assert compose()[name]["healthcheck"]["test"][:3] == ["CMD", "python3", script]
    for sources in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.M):
        for path in sources.split():
            assert f"!{path}" in (ROOT / ".dockerignore").read_text().splitlines(), f"{path} is not in the context"


# --- Schemas ----------------------------------------------------------------------------------------------------------


def of_kubernetes() -> list[dict[str, Any]]:
    return [d for _, d in documents() if d["kind"] not in ("Kustomization", "ScaledObject")]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_own_schemas_find_nothing(version: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="pip install 'streamtask-kafka[manifests]'")
    for document in of_kubernetes():
        checker.validate(document, version, strict=True)
    wrong = copy.deepcopy(one("Deployment", "streamtask-worker"))
    wrong["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    with pytest.raises(checker.ValidationError, match="terminationGraceSeconds"):
        checker.validate(wrong, version, strict=True)


@cache
def scaled_object_schema() -> dict[str, Any]:
    """Of KEDA's own definition, with names that are not in it forbidden. Skips where it cannot be had."""
    if shutil.which("go") is None:
        pytest.skip("KEDA's definition comes as a Go module: install Go")
    done = subprocess.run(
        ["go", "mod", "download", "-json", KEDA], capture_output=True, text=True, cwd="/", timeout=120
    )
    if done.returncode:
        pytest.skip(f"KEDA's definition cannot be had: {(done.stderr or done.stdout).strip()[-200:]}")
    crd = Path(json.loads(done.stdout)["Dir"], "config", "crd", "bases", "keda.sh_scaledobjects.yaml")
    (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _forbid_more(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _forbid_more(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
            schema["additionalProperties"] = False
        for value in schema.values():
            _forbid_more(value)


def test_kedas_own_definition_finds_nothing() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install 'streamtask-kafka[manifests]'")
    schema = scaled_object_schema()
    scaled = one("ScaledObject", "streamtask-worker")
    jsonschema.validate(scaled, schema)
    for misspelt in ("maxReplicas", "polling"):
        wrong = copy.deepcopy(scaled)
        wrong["spec"][misspelt] = 1
        with pytest.raises(jsonschema.ValidationError, match=misspelt):
            jsonschema.validate(wrong, schema)
