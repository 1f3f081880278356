"""Bad params and bad environments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.row import Row, smoke, write


def load() -> object:
    from protege.config import load

    return load("params.yaml")


def changed(
    id: str, given: str, names: tuple[str, ...], change: Callable[[dict[str, Any]], object], file: str = "params.yaml"
) -> Row:
    until = "there are:" if "no such key" in names else ""  # the names of the sections, which grow
    return Row(f"params.load: {id}", given, (file, *names), enter=load, prepare=smoke(change), until=until)


def file(id: str, given: str, names: tuple[str, ...], content: str | bytes) -> Row:
    return Row(f"params.load: {id}", given, ("params.yaml", *names), enter=load, prepare=write("params.yaml", content))


def text(name: str, content: str) -> Callable[[], object]:
    """Profile smoke, and then ``content`` for the file ``name``."""

    def prepare() -> None:
        smoke(lambda raw: None)()
        Path(name).write_text(content, encoding="utf-8")

    return prepare


def api_expert() -> object:
    from protege.config import load
    from protege.expert.registry import expert_named

    params = load("params.yaml")
    return expert_named("api", params.expert, params.api)


def api_judge() -> object:
    from protege.config import load
    from protege.expert.registry import judge_of

    params = load("params.yaml")
    return judge_of(params.judge, params.api)


URL, MODEL, KEY = "PROTEGE_EXPERT_BASE_URL", "PROTEGE_EXPERT_MODEL", "PROTEGE_EXPERT_API_KEY"
SET = ((URL, "http://127.0.0.1:9/v1"), (MODEL, "some-model"), (KEY, "a-secret-key"))


def endpoint(id: str, given: str, names: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> Row:
    return Row(f"api expert: {id}", given, names, enter=api_expert, prepare=smoke(lambda raw: None), env=env)


ROWS = [
    changed("unknown key", "`agent.step_limits`", ("agent.step_limits", "step_limit?"), lambda p: p["agent"].update(step_limits=3)),
    changed("unknown section", "a section `training`", ("training", "no such key", "there are:"), lambda p: p.update(training={})),
    changed("missing section", "no section `rl`", ("rl", "missing"), lambda p: p.pop("rl")),
    changed("missing key", "no `instances.splits`", ("instances.splits", "missing"), lambda p: p["instances"].pop("splits")),
    changed("wrong type", "`agent.step_limit: many`", ("agent.step_limit", "integer"), lambda p: p["agent"].update(step_limit="many")),
    changed("a list for a section", "`sft: [1]`", ("sft", "section"), lambda p: p.update(sft=[1])),
    changed("below its range", "`sft.steps: 0`", ("sft.steps", "greater than or equal to 1"), lambda p: p["sft"].update(steps=0)),
    changed("above its range", "`evaluate.temperature: -1`", ("evaluate.temperature", "0"), lambda p: p["evaluate"].update(temperature=-1)),
    changed("not a number", "`sft.learning_rate: .nan`", ("sft.learning_rate", "finite"), lambda p: p["sft"].update(learning_rate=float("nan"))),
    changed("infinite", "`rl.learning_rate: .inf`", ("rl.learning_rate", "finite"), lambda p: p["rl"].update(learning_rate=float("inf"))),
    changed("infinite budget", "`api.budget_usd: .inf`", ("api.budget_usd", "finite"), lambda p: p.update(api={"budget_usd": float("inf")}), "machine.yaml"),
    changed("inconsistent", "`sandbox.lifetime_s` below `agent.time_limit_s`", ("sandbox.lifetime_s", "agent.time_limit_s"), lambda p: p["sandbox"].update(lifetime_s=60)),
    changed("shared packages", "`eval` and `sft` share a package", ("instances", "toolz", "eval"), lambda p: p["instances"]["splits"]["eval"].update(packages=["toolz"])),
    changed("unknown split", "a split `test`", ("instances.splits.test", "'sft', 'rl' or 'eval'"), lambda p: p["instances"]["splits"].update(test={"count": 1})),
    changed("unknown model", "`evaluate.models: [big]`", ("evaluate.models", "'base', 'sft' or 'rl'"), lambda p: p["evaluate"].update(models=["big"])),
    changed("unknown expert", "`evaluate.experts: [nobody]`", ("evaluate.experts", "'none', 'oracle' or 'api'"), lambda p: p["evaluate"].update(experts=["nobody"])),
    changed("no systems", "`evaluate.models: []`", ("evaluate.models", "at least 1"), lambda p: p["evaluate"].update(models=[])),
    changed("samples when greedy", "3 samples at temperature 0", ("evaluate", "samples", "temperature"), lambda p: p["evaluate"].update(samples=3, temperature=0.0)),
    changed("unknown backend", "`sandbox.backend: podman`", ("sandbox.backend", "'auto', 'docker' or 'bubblewrap'"), lambda p: p["sandbox"].update(backend="podman")),
    changed("unknown dtype", "`model.dtype: int4`", ("model.dtype", "'bfloat16' or 'float32'"), lambda p: p["model"].update(dtype="int4")),
    changed("price", "a negative price", ("api.prices.m.input", "greater than or equal to 0"), lambda p: p.update(api={"prices": {"m": {"input": -1, "output": 1}}}), "machine.yaml"),
    changed("half a price", "a price without `output`", ("api.prices.m.output", "missing"), lambda p: p.update(api={"prices": {"m": {"input": 1}}}), "machine.yaml"),
    changed("run name", "`api.run: ../x`", ("api.run",), lambda p: p.update(api={"run": "../x"}), "machine.yaml"),
    Row("params.load: the other file's key", "`rl.workers` in params.yaml", ("params.yaml", "rl.workers", "machine.yaml"), enter=load,
        prepare=text("params.yaml", "profile: x\nrl: {workers: 4}\n")),
    Row("machine.yaml: a key that decides", "`rl.steps` in machine.yaml", ("machine.yaml", "rl.steps", "params.yaml"), enter=load,
        prepare=text("machine.yaml", "rl: {steps: 4}\n")),
    Row("machine.yaml: unknown key", "`rl.worker` in machine.yaml", ("machine.yaml", "rl.worker", "workers?"), enter=load,
        prepare=text("machine.yaml", "rl: {worker: 4}\n")),
    Row("machine.yaml: unknown section", "a section `train` in machine.yaml", ("machine.yaml", "train", "there are:"), enter=load,
        prepare=text("machine.yaml", "train: {workers: 4}\n")),
    file("empty", "no bytes", ("empty", "profiles/"), b""),
    file("a list", "a list", ("list", "sections", "profiles/"), "- 1\n"),
    file("not YAML", "a bracket left open", ("YAML", "line 2"), "profile: smoke\nagent: [1\n"),
    file("a key twice", "`profile` twice", ("profile", "twice"), "profile: smoke\nprofile: desk\n"),
    file("not UTF-8", "Latin-1", ("UTF-8",), "profile: smoké\n".encode("latin-1")),
    file("binary", "zero bytes", ("YAML",), b"\x00\x01\x02"),
    Row("params.load: missing", "no params.yaml", ("params.yaml", "profiles/"), enter=load),
    Row("params.load: a folder", "a folder called params.yaml", ("params.yaml", "cannot be read", "profiles/"), enter=load, prepare=lambda: Path("params.yaml").mkdir()),
    endpoint("no key", "no PROTEGE_EXPERT_API_KEY", (KEY, "environment"), SET[:2]),
    endpoint("nothing set", "none of the three variables", (URL, MODEL, KEY), ()),
    endpoint("not an address", "an address without http", (URL, "http://host:8000/v1"), (((URL, "host:8000")), *SET[1:])),
    endpoint("a key in the address", "a password in the address", (URL, KEY), (((URL, "http://me:secret@host/v1")), *SET[1:])),
    endpoint("no price", "a model that `api.prices` does not name", ("api.prices", "some-model", "allow_unknown_price"), SET),
    Row("api judge: nothing set", "`judge.kind: api` without variables", (KEY, "environment"), enter=api_judge,
        prepare=smoke(lambda p: p["judge"].update(kind="api"))),
]  # fmt: skip
