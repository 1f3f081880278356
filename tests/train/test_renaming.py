"""Renamed copies of a conversation: consistent, tool calls intact, nothing but names changed."""

from __future__ import annotations

import random
import re

import pytest

from protege.agent.tools import parse_call, render_call
from protege.core.trajectory import ToolCall
from protege.train.renaming import renamed
from protege.train.sft import with_renamed


def say(tool: str, **arguments: str) -> str:
    return f"I change `shift` in `pkg/core.py`.\n\n{render_call(ToolCall(name=tool, arguments=arguments))}"


CHAT = [
    {"role": "system", "content": "Tools of pkg: shift, core."},
    {"role": "user", "content": "`Pump.shift` gives 7\n\nfrom pkg.core import Pump\nPump().shift(OFFSET, 3)"},
    {"role": "assistant", "content": say("bash", command="grep -n 'def shift' pkg/core.py")},
    {
        "role": "user",
        "content": "<expert_llm_guidance>\nIn `pkg/core.py`, look at `Pump.shift`: use `+`.\n</expert_llm_guidance>",
    },
    {
        "role": "assistant",
        "content": say(
            "str_replace_editor",
            command="str_replace",
            path="/testbed/pkg/core.py",
            old_str="    return amount - _base * OFFSET",
            new_str="    return amount + _base * OFFSET",
        ),
    },
    {"role": "user", "content": "pkg/core.py edited; shifted is another word, and so is repkg"},
]
SEEDS = range(40)


def words(chat: list[dict[str, str]]) -> list[str]:
    return [word for message in chat[1:] for word in re.findall(r"\w+", message["content"])]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_old_name_has_one_new_name_everywhere(seed):
    chat = renamed(CHAT, random.Random(seed))
    plain = [m | {"content": re.sub(r"\b(src|lib)/", "", m["content"]).replace("__init__", "core")} for m in chat]
    pairs = {}
    for old, new in zip(words(CHAT), words(plain), strict=True):
        assert pairs.setdefault(old, new) == new or old == "core"
    assert {"pkg", "shift", "Pump", "OFFSET", "amount", "_base"} <= {old for old, new in pairs.items() if old != new}
    assert len(set(pairs.values())) == len(pairs)
    for kept in ("shifted", "repkg", "return", "testbed", "gives", "3", "7"):
        assert pairs[kept] == kept
    assert pairs["Pump"][0].isupper() and pairs["OFFSET"].isupper() and pairs["_base"].startswith("_")
    assert chat[0] == CHAT[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_calls_stay_well_formed_and_name_the_path_that_the_advice_names(seed):
    chat = renamed(CHAT, random.Random(seed))
    edit, look = parse_call(chat[4]["content"]), parse_call(chat[2]["content"])
    named = re.search(r"In `([^`]+)`", chat[3]["content"]).group(1)
    assert edit.arguments["path"] == f"/testbed/{named}" and look.arguments["command"].endswith(f" {named}")
    assert edit.arguments["old_str"].replace("-", "+") == edit.arguments["new_str"]
    assert edit.arguments["old_str"].startswith("    return ")


def test_layouts_vary_and_the_same_seed_gives_the_same_copy():
    paths = {parse_call(renamed(CHAT, random.Random(seed))[4]["content"]).arguments["path"] for seed in SEEDS}
    assert any("/src/" in path for path in paths) and any("__init__.py" in path for path in paths)
    assert any(path.count("/") == 3 for path in paths) and len(paths) == len(SEEDS)
    assert renamed(CHAT, random.Random(1)) == renamed(CHAT, random.Random(1))


def test_copies_stand_beside_the_rows_under_their_own_ids():
    table = [{"instance_id": "i", "trajectory_id": "t", "messages": CHAT}]
    rows = with_renamed(table, 2, seed=3)
    assert [row["trajectory_id"] for row in rows] == ["t", "t~1", "t~2"] and rows[0] is table[0]
    assert rows[1]["messages"] != rows[2]["messages"] != CHAT
    assert with_renamed(table, 0, seed=3) == table
