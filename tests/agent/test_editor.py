"""str_replace_editor in a real sandbox: SWE-agent's meanings and errors."""

import pytest

from protege.agent.tools import Toolbox
from protege.config import SandboxParams
from protege.core.trajectory import ToolCall
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.helpers import make_instance, make_testbed

CORE = "/testbed/calc/core.py"


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = make_testbed(tmp_path_factory.mktemp("beds"), make_instance().instance_id)
    return BubblewrapProvider(SandboxParams(), folder)


@pytest.fixture
def edit(provider):
    with provider.open(make_instance()) as sandbox:
        toolbox = Toolbox(sandbox, 20)

        def edit(command, path=CORE, **arguments):
            call = ToolCall(name="str_replace_editor", arguments={"command": command, "path": path, **arguments})
            return toolbox.run(call, 60).observation

        edit.sandbox = sandbox
        yield edit


def test_view_numbers_lines_and_takes_ranges(edit):
    assert "     3\t    result = first + second" in edit("view")
    part = edit("view", view_range="[2, 3]")
    assert "     2\t" in part and "     1\t" not in part and "     4\t" not in part
    assert "     5\t" in edit("view", view_range="[4, -1]")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[0, 2]", "first element `0`"),
        ("[9, 10]", "first element `9`"),
        ("[3, 2]", "second element `2`"),
        ("x", "two integers"),
    ],
)
def test_bad_ranges_are_explained(edit, value, says):
    assert says in edit("view", view_range=value)


def test_view_of_a_folder_is_two_levels_without_hidden_items(edit):
    listing = edit("view", path="/testbed")
    assert "/testbed/calc/core.py" in listing and ".git" not in listing
    assert "not allowed" in edit("view", path="/testbed", view_range="[1, 2]")


def test_str_replace_needs_exactly_one_occurrence(edit):
    assert "did not appear verbatim" in edit("str_replace", old_str="nowhere", new_str="x")
    assert "Multiple occurrences" in edit("str_replace", old_str="result", new_str="x")
    assert "is the same as" in edit("str_replace", old_str="first + second", new_str="first + second")
    assert "`old_str` is required" in edit("str_replace", new_str="x")
    said = edit("str_replace", old_str="first + second", new_str="first - second")
    assert "has been edited" in said and "     3\t    result = first - second" in said
    assert b"first - second" in edit.sandbox.read(CORE)


def test_insert_after_a_line(edit):
    assert "     3\t    # note" in edit("insert", insert_line="2", new_str="    # note")
    assert "within the range" in edit("insert", insert_line="99", new_str="x")
    assert "within the range" in edit("insert", insert_line="two", new_str="x")
    assert "`new_str` is required" in edit("insert", insert_line="1")


def test_create_never_overwrites(edit):
    assert "already exists" in edit("create", file_text="x")
    assert "created successfully" in edit("create", path="/testbed/new/a b.py", file_text="x = 1\n")
    assert edit.sandbox.read("/testbed/new/a b.py") == b"x = 1\n"
    assert "`file_text` is required" in edit("create", path="/testbed/other.py")


def test_undo_goes_back_edit_by_edit(edit):
    before = edit.sandbox.read(CORE)
    edit("str_replace", old_str="first + second", new_str="1")
    edit("insert", insert_line="0", new_str="import os")
    edit("undo_edit")
    assert b"import os" not in edit.sandbox.read(CORE)
    edit("undo_edit")
    assert edit.sandbox.read(CORE) == before
    assert "No edit history" in edit("undo_edit")
    edit("create", path="/testbed/n.py", file_text="")
    edit("undo_edit", path="/testbed/n.py")
    with pytest.raises(FileNotFoundError):
        edit.sandbox.read("/testbed/n.py")


def test_paths_are_checked(edit):
    assert "Maybe you meant /testbed/calc/core.py" in edit("view", path="calc/core.py")
    assert "does not exist" in edit("view", path="/testbed/none.py")
    assert "is a directory" in edit("str_replace", path="/testbed/calc", old_str="a", new_str="b")
    assert "Cannot write" in edit("create", path="/usr/x.py", file_text="x")
    assert "Unrecognized command" in edit("delete")


def test_binary_files_are_refused(edit):
    edit.sandbox.write("/testbed/b.bin", b"\xff\xfe\x00")
    assert "not a UTF-8" in edit("view", path="/testbed/b.bin")
