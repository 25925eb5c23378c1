"""The form of requests: everything wrong is named by its path, output-only fields are not looked at, hostile text gets nowhere."""

import importlib
import pkgutil

import pytest
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

import hostler.api
from hostler.errors import InvalidRequest, Violation
from hostler.server import validation
from hostler.server.validation import TextRule, check, require_valid, resource_id

F = descriptor_pb2.FieldDescriptorProto
REQUIRED, OUTPUT_ONLY = field_behavior_pb2.REQUIRED, field_behavior_pb2.OUTPUT_ONLY


def request_class() -> type[Message]:
    """`t.Request`, made by hand so that the rules and not today's API are tested."""
    file = descriptor_pb2.FileDescriptorProto(
        name="t/request.proto", package="t", syntax="proto3", dependency=["google/api/field_behavior.proto"]
    )
    file.enum_type.add(name="Kind").value.add(name="KIND_UNSPECIFIED", number=0)
    file.enum_type[0].value.add(name="DISK", number=1)
    message = file.message_type.add(name="Request")

    def field(name: str, number: int, kind: "F.Type.ValueType", *behaviors: int, repeated: bool = False, type_name: str = "") -> None:
        label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
        made = message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)
        made.options.Extensions[field_behavior_pb2.field_behavior].extend(behaviors)

    field("name", 1, F.TYPE_STRING, REQUIRED)
    field("kind", 2, F.TYPE_ENUM, REQUIRED, type_name=".t.Kind")
    field("child", 3, F.TYPE_MESSAGE, type_name=".t.Request")
    field("children", 4, F.TYPE_MESSAGE, repeated=True, type_name=".t.Request")
    field("labels", 5, F.TYPE_MESSAGE, repeated=True, type_name=".t.Request.LabelsEntry")
    field("state", 6, F.TYPE_MESSAGE, OUTPUT_ONLY, REQUIRED, type_name=".t.Request")
    field("note", 7, F.TYPE_STRING)
    field("data", 8, F.TYPE_BYTES)
    field("ratio", 9, F.TYPE_DOUBLE)
    field("tags", 10, F.TYPE_STRING, REQUIRED, repeated=True)
    entry = message.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Request"))


Request = request_class()
GOOD = {"name": "n", "kind": 1, "tags": ["x"]}


def good(**more: object) -> Message:
    return Request(**{**GOOD, **more})


def fields(request: Message) -> list[str]:
    return [violation.field for violation in check(request)]


def test_a_good_request_has_nothing_wrong() -> None:
    nested = good(child=good(), children=[good(), good()], labels={"a": "b"}, note="grüße 日本", data=b"\x00\xff", ratio=0.5)
    assert check(nested) == ()
    require_valid(nested)


def test_everything_missing_is_named_at_once_by_its_path() -> None:
    assert fields(Request()) == ["name", "kind", "tags"]
    nested = good(child=Request(**GOOD | {"name": ""}), children=[good(), Request(**GOOD | {"kind": 0})])
    assert fields(nested) == ["child.name", "children[1].kind"]
    with pytest.raises(InvalidRequest) as caught:
        require_valid(Request())
    assert caught.value.violations[0] == Violation("name", "is required; give it a value.")


def test_output_only_fields_are_not_looked_at() -> None:
    assert check(good(state=Request(kind=99, note="\x00"))) == ()


@pytest.mark.parametrize("character", ["\x00", "\n", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\u200b", "\u061c", "\ufeff"])
def test_characters_that_lie_in_a_log_are_refused_everywhere(character: str) -> None:
    text = f"a{character}b"
    assert fields(good(note=text)) == ["note"]
    assert fields(good(tags=["ok", text])) == ["tags[1]"]
    assert fields(good(labels={text: "x"})) == ["labels"]
    assert fields(good(labels={"k": text})) == ["labels[k]"]
    assert character not in repr(check(good(labels={text: "x"})))


def test_sizes_are_bounded() -> None:
    assert fields(good(note="a" * (validation.MAX_TEXT_CHARS + 1))) == ["note"]
    assert fields(good(data=bytes(validation.MAX_BYTES + 1))) == ["data"]
    assert fields(good(children=[good()] * (validation.MAX_ITEMS + 1))) == ["children"]
    assert fields(good(labels={str(i): "" for i in range(validation.MAX_ITEMS + 1)})) == ["labels"]
    assert len(fields(good(children=[Request()] * 500))) == validation.MAX_VIOLATIONS


def test_depth_is_bounded() -> None:
    request = good()
    for _ in range(validation.MAX_DEPTH):
        request = good(child=request)
    assert check(request) == ()
    assert fields(good(child=request)) == [".".join(["child"] * (validation.MAX_DEPTH + 1))]


def test_values_this_version_does_not_know_are_refused() -> None:
    assert fields(good(kind=7)) == ["kind"]
    for odd in (float("nan"), float("inf"), float("-inf")):
        assert fields(good(ratio=odd)) == ["ratio"]


def test_a_field_with_a_rule_of_its_own_may_be_long_and_have_lines() -> None:
    rules = {"t.Request.note": TextRule(max_chars=5000, multiline=True)}
    assert check(good(note="a\n\tb" * 1000), rules) == ()
    assert [v.field for v in check(good(note="a" * 5001, tags=["a\nb"]), rules)] == ["note", "tags[0]"]
    assert [v.field for v in check(good(note="a\rb\x00"), rules)] == ["note"]


@given(st.text(max_size=80))
def test_a_resource_name_has_one_spelling(tail: str) -> None:
    try:
        assert f"vms/{resource_id('vms', f'vms/{tail}', 'name')}" == f"vms/{tail}"
    except InvalidRequest:
        assert not validation.is_resource_id(tail)


NO_NAMES = "", "web", "vms/", "vms/Web", "vms/web/x", "vms/../x", "vms/web\n", "volumes/web", "vms/1web", "vms/web-", "vms/" + "a" * 64


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_not_a_name_of_the_collection_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resource_id("vms", name, "vm.name")
    assert caught.value.violations[0].field == "vm.name"


def test_uuids_have_one_spelling() -> None:
    assert validation.is_uuid("00000000-0000-4000-8000-000000000001")
    for odd in ("", "00000000-0000-4000-8000-00000000000A", "{00000000-0000-4000-8000-000000000001}", "00000000000040008000000000000001"):
        assert not validation.is_uuid(odd)


def test_every_message_of_the_api_can_be_checked() -> None:
    names = [m.name for m in pkgutil.walk_packages(hostler.api.__path__, "hostler.api.") if m.name.endswith("_pb2")]
    classes = [
        cls for name in names for cls in vars(importlib.import_module(name)).values() if isinstance(cls, type) and issubclass(cls, Message)
    ]
    assert len(classes) > 30
    for cls in classes:
        check(cls())
