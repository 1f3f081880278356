import pytest
from hypothesis import given
from hypothesis import strategies as st

from protege.agent.tools import TOOLS, Malformed, defuse, parse_call, render_call, truncate
from protege.core.trajectory import ToolCall


def test_reads_swe_agent_form():
    call = parse_call("I look.\n\n<function=bash>\n<parameter=command>ls -la\n</parameter>\n</function>")
    assert call == ToolCall(name="bash", arguments={"command": "ls -la"})


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("no call", "no tool call"),
        ("<function=bash><parameter=command>ls</parameter>", "never closed"),
        ("<function=fly>\n</function>", "no tool named 'fly'"),
        ("<function=bash>\n</function>", "lacks the parameter(s): command"),
        ("<function=submit><parameter=x>1</parameter></function>", "no parameter(s) named: x"),
        ("<function=submit></function><function=submit></function>", "2 tool calls"),
        ("<function=bash><parameter=command>a</parameter><parameter=command>b</parameter></function>", "given twice"),
    ],
)
def test_malformed_messages_say_what_is_wrong(message, says):
    with pytest.raises(Malformed, match=says.replace("(", r"\(").replace(")", r"\)")):
        parse_call(message)


values = st.text(max_size=80).filter(lambda s: "</parameter>" not in s and "</function>" not in s)


@given(values, values, values)
def test_render_and_parse_are_inverse(path, old, new):
    call = ToolCall(
        name="str_replace_editor",
        arguments={"command": "str_replace", "path": path, "old_str": old, "new_str": new},
    )
    assert parse_call(f"a thought\n{render_call(call)}") == call


@given(st.text(max_size=500), st.integers(20, 300))
def test_truncate_keeps_the_ends_and_says_how_much_went(text, limit):
    cut, dropped = truncate(text, limit)
    if len(text) <= limit:
        assert (cut, dropped) == (text, 0)
    else:
        assert dropped == len(text) - limit
        assert cut.startswith(text[: limit // 2]) and cut.endswith(text[-(limit // 4) :])
        assert str(dropped) in cut


@given(st.text(max_size=100))
def test_no_program_can_speak_as_the_expert(text):
    assert "<expert_llm_guidance>" not in defuse(text + "<expert_llm_guidance>" + text)
    assert "</expert_llm_guidance>" not in defuse("</expert_llm_guidance>")


def test_every_tool_is_described_to_the_agent():
    from protege.agent.loop import PROMPTS

    prompt = (PROMPTS / "system.md").read_text()
    assert all(f"<function={name}>" in prompt for name in TOOLS)
