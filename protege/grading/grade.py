"""The third verb's judge: (instance, patch) -> Verdict, in a fresh sandbox that the agent never touched.

With Docker the official harness (``swebench.harness.run_evaluation.run_instance``) does the work; it is given
a client that adds our limits to the container it makes. Without Docker the row's eval script runs in a fresh
bubblewrap sandbox. Either way the verdict is the harness's own ``get_eval_report``, with two additions: parts of
a patch that decide how tests are run are left out and named (``harness/filtering.py``), and a "resolved" must be
borne out by a second record of the tests (``harness/evidence.py``).

Whose fault is what: a patch that does not apply, makes tests fail, hang, run out of memory or print without
end is unresolved. Only what the engine itself reports (no container, a container that died, no answer)
raises GradingError: the harness's ``infra_failure`` is read off the test log, into which a patch can write,
so it is noted in ``reason`` and decides nothing.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Verdict, patch_digest
from protege.errors import GradingError, ImageMissing, SandboxError
from protege.files import digest, write_atomic, write_json
from protege.grading import evidence
from protege.grading.evidence import Recorder
from protege.grading.filtering import filter_patch
from protege.grading.official import MAX_LOG_BYTES, harness, limited_client
from protege.sandbox.bubblewrap import BubblewrapProvider, BubblewrapSandbox
from protege.sandbox.docker import DockerProvider
from protege.sandbox.open import open_provider
from protege.sandbox.patches import patch_problem

_TAIL_CHARS = 4000


def grade(
    instance: Instance,
    patch: str,
    provider: DockerProvider | BubblewrapProvider | SandboxParams,
    *,
    log_dir: Path | str,
) -> Verdict:
    """The verdict on ``patch``. Safe to call from many threads, for the same instance too.

    ``log_dir`` receives ``<instance_id>/<digest>/`` with the patch, the eval script, the test output and the
    report. ``Verdict.backend`` is "swebench-docker", "bubblewrap", or "none" where nothing had to be run.

    Raises:
        GradingError: the engine failed; a retry may help.
        ImageMissing: the instance's image (or archive) is not here.
    """
    if isinstance(provider, SandboxParams):
        provider = open_provider(provider)
    started = time.monotonic()
    basis = Verdict(
        instance_id=instance.instance_id,
        instance_digest=instance.digest,
        patch_digest=patch_digest(patch),
        resolved=False,
        applied=False,
        fail_to_pass=(0, len(instance.FAIL_TO_PASS)),
        pass_to_pass=(0, len(instance.PASS_TO_PASS)),
        backend="none",
    )
    if not patch.strip():
        return basis.model_copy(update={"empty_patch": True, "reason": "the patch is empty"})
    problem = patch_problem(patch)
    if problem:
        return basis.model_copy(update={"reason": f"the patch was rejected: {problem}"})
    text = patch if patch.endswith("\n") else patch + "\n"
    text, dropped = filter_patch(text, instance)
    if not text.strip():
        reason = f"nothing is left of the patch: it touches only what decides how tests run ({', '.join(dropped[:10])})"
        return basis.model_copy(update={"reason": reason, "dropped": dropped})
    image_digest = provider.image_digest(instance)
    # a new folder each time: the harness would answer from a report.json that it finds
    key = digest(instance.digest, patch_digest(patch), image_digest)[:16] + "-" + uuid.uuid4().hex[:8]
    folder = Path(log_dir).resolve() / instance.instance_id / key
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(provider, DockerProvider):
        facts = _run_docker(instance, text, provider, folder)
    else:
        facts = _run_bubblewrap(instance, text, provider, folder)
    facts.update(dropped=dropped, image_digest=image_digest, seconds=round(time.monotonic() - started, 3))
    verdict = basis.model_copy(update=facts)
    write_json(folder / "verdict.json", verdict.model_dump(mode="json"))
    return verdict


def _run_docker(instance: Instance, patch: str, provider: DockerProvider, folder: Path) -> dict[str, Any]:
    from docker.errors import DockerException
    from swebench.harness.utils import make_test_spec

    module, recorder = harness(), Recorder()
    params, engine = provider.params, {"overflow": False, "sites": []}
    spec = make_test_spec(instance.to_row())
    prediction = {"instance_id": instance.instance_id, "model_name_or_path": "patch", "model_patch": patch}
    timeout = max(1, int(params.grade_timeout_s))
    try:
        client = limited_client(params, engine, recorder)
        try:
            answer = module.run_instance(spec, prediction, client, str(folder), timeout=timeout)
        finally:
            client.close()
    except (DockerException, OSError) as error:
        raise GradingError(f"{instance.instance_id}: the Docker engine failed while grading: {error}") from error
    logs = folder / "patch" / instance.instance_id
    output = _text(logs / "test_output.txt")
    if client.died:
        # tests cannot end the container's first process; the engine or the machine did
        raise GradingError(
            f"{instance.instance_id}: the container died while grading; see {logs}",
            evidence.without_record(output)[-_TAIL_CHARS:],
        )
    if answer is not None:
        facts = _facts(answer[1][instance.instance_id], output, "swebench-docker", bool(engine["overflow"]))
        changed = evidence.changed_system_files(client.changes, recorder.module)
        if facts["resolved"] and changed:
            return _distrusted(facts, f"the test run changed {', '.join(changed[:5])}")
        return _checked(facts, instance, spec, output, recorder, bool(engine["sites"]), patch, "/testbed")
    # the harness swallows what went wrong and leaves it at the end of its log, after anything a patch can write
    last = _text(logs / "run_instance.log").rpartition("Traceback (most recent call last)")[2]
    if "EvaluationError" in last and f"Test timed out after {timeout} seconds" in last:
        return {"applied": True, **_unresolved(f"the tests took longer than {timeout} s", output, "swebench-docker")}
    if "EvaluationError" in last and ">>>>> Patch Apply Failed" in last:
        return _unresolved("the patch does not apply", last, "swebench-docker")
    why = last.strip().splitlines()[-3:] or ["it left no log"]
    raise GradingError(
        f"{instance.instance_id}: the harness came to no verdict ({' '.join(why)}); see {logs}",
        evidence.without_record(output)[-_TAIL_CHARS:],
    )


def _run_bubblewrap(instance: Instance, patch: str, provider: BubblewrapProvider, folder: Path) -> dict[str, Any]:
    from swebench.harness.utils import make_test_spec

    module = harness()
    spec = make_test_spec(instance.to_row())
    prediction = {"instance_id": instance.instance_id, "model_name_or_path": "patch", "model_patch": patch}
    write_atomic(folder / "patch.diff", patch)
    timeout = max(1, int(provider.params.grade_timeout_s))
    try:
        with provider.open(instance) as sandbox:
            applied, log = _apply(sandbox, patch, module.GIT_APPLY_CMDS)
            if not applied:
                return _unresolved("the patch does not apply", log, "bubblewrap")
            recorder, site = Recorder("/tmp"), f"/tmp/{uuid.uuid4().hex}"
            for name, text in {**recorder.files, recorder.key: recorder.secret}.items():
                sandbox.write(name if name.startswith("/") else f"{site}/{name}", text.encode())
            script = f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{site}"\n{spec.eval_script}'
            raw = sandbox.run_script(script, timeout=timeout, limit=MAX_LOG_BYTES)
            workdir = sandbox.workdir
    except ImageMissing:
        raise
    except SandboxError as error:
        raise GradingError(f"{instance.instance_id}: the sandbox failed while grading: {error}") from error
    output = raw.stdout.decode("utf-8", "replace")
    if raw.timed_out:
        output += f"\n\nTimeout error: {timeout} seconds exceeded."
    path = write_atomic(folder / "test_output.txt", output)
    if raw.timed_out:
        return {"applied": True, **_unresolved(f"the tests took longer than {timeout} s", output, "bubblewrap")}
    report = module.get_eval_report(
        test_spec=spec, prediction=prediction, test_log_path=path, include_tests_status=True
    )
    write_json(folder / "report.json", report)
    facts = _facts(report[instance.instance_id], output, "bubblewrap", raw.dropped > 0)
    return _checked(facts, instance, spec, output, recorder, True, patch, workdir)


def _checked(
    facts: dict[str, Any],
    instance: Instance,
    spec: Any,
    output: str,
    recorder: Recorder,
    installed: bool,
    patch: str,
    workdir: str,
) -> dict[str, Any]:
    """A "resolved" with its evidence named, or taken back because the evidence speaks against it."""
    if not facts["resolved"]:
        return facts
    if problem := evidence.log_problem(instance, output):
        return _distrusted(facts, problem)
    record = recorder.read(output)
    if not record.started and not (installed and evidence.expects_pytest(instance)):
        return {**facts, "evidence": "log"}
    if problem := evidence.record_problem(instance, spec, record, patch, workdir):
        return _distrusted(facts, problem)
    return {**facts, "evidence": "record"}


def _distrusted(facts: dict[str, Any], why: str) -> dict[str, Any]:
    return {**facts, "resolved": False, "reason": why, "evidence": "refuted"}


def _apply(sandbox: BubblewrapSandbox, patch: str, commands: list[str]) -> tuple[bool, str]:
    """The harness's own chain of commands, with its fresh start between them."""
    path = "/tmp/patch.diff"
    sandbox.write(path, patch.encode())
    log = ""
    for attempt, command in enumerate(commands):
        if attempt:
            sandbox.exec("git checkout -- . ; git clean -fd")
        result = sandbox.exec(f"{command} {path}")
        log += f"$ {command}\n{result.output}"
        if result.exit_code == 0:
            return True, log
    return sandbox.exec(f"git apply --check --reverse {path}").exit_code == 0, log


def _facts(report: dict[str, Any], output: str, backend: str, overflow: bool) -> dict[str, Any]:
    """Fields of the Verdict from one instance's entry of the harness's report."""
    facts: dict[str, Any] = {
        "resolved": bool(report["resolved"]),
        "applied": True,
        "backend": backend,
        "log_tail": evidence.without_record(output)[-_TAIL_CHARS:],
    }
    tests = report.get("tests_status")
    if tests is None:
        seen = report.get("infra_failure_reason")
        facts["reason"] = (
            f"the tests printed over {MAX_LOG_BYTES} bytes" if overflow else "the log holds no usable test results"
        )
        facts["reason"] += f" (it looks like: {seen})" if seen else ""
        return facts
    for field, key in (("fail_to_pass", "FAIL_TO_PASS"), ("pass_to_pass", "PASS_TO_PASS")):
        good, bad = tests[key]["success"], tests[key]["failure"]
        facts[field] = (len(good), len(good) + len(bad))
        facts.setdefault("failed_tests", []).extend(bad)
    if not facts["resolved"]:
        facts["reason"] = f"{len(facts['failed_tests'])} of the deciding tests fail"
    return facts


def _unresolved(reason: str, output: str, backend: str) -> dict[str, Any]:
    return {"reason": reason, "log_tail": evidence.without_record(output)[-_TAIL_CHARS:], "backend": backend}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
