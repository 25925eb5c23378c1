"""What is checked in every request before anybody looks at what it means: presence, known enum values, sane text, sizes, depth.

The rules are read from the proto itself (google.api.field_behavior): REQUIRED fields must be there; OUTPUT_ONLY fields are ignored, as AIP-203
says, and so not even looked at. IMMUTABLE needs the stored resource and is the servicer's. Text may not contain control characters, line
separators or characters that reorder text (they lie to whoever reads a log or a list). All violations come back at once, by dotted proto
path, up to MAX_VIOLATIONS. The rules of a message type are worked out once and kept: a check costs some microseconds.

Resource names are `<collection>/<id>`; ids follow one pattern, so that each is also a DNS label, a file name and an etcd key segment.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from hostler.errors import Violation, invalid

MAX_VIOLATIONS = 20
MAX_DEPTH = 16
"""Messages within messages; ours nest five deep. protobuf itself stops at 100 while parsing."""
MAX_ITEMS = 1000
"""Of one repeated or map field: the largest batch that the API offers."""
MAX_TEXT_CHARS = 1024
"""Of one string, unless a TextRule says otherwise."""
MAX_BYTES = 64 * 1024
"""Of one bytes field: what the store takes as one value."""

_ID = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_RESOURCE_ID = re.compile(_ID)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# C0, DEL, C1; line and paragraph separators; bidirectional controls; zero-width characters; the byte order mark.
_BAD_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_BAD_MULTILINE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


@dataclass(frozen=True, slots=True)
class TextRule:
    """The exception to the rule for one string field (`hostler.api.type.v1.VM.user_data`)."""

    max_chars: int = MAX_TEXT_CHARS
    multiline: bool = False


TextRules = Mapping[str, TextRule]
_NO_RULES: TextRules = {}


def check(request: Message, text_rules: TextRules = _NO_RULES) -> tuple[Violation, ...]:
    """Everything that is wrong with the form of `request`, up to MAX_VIOLATIONS; empty when nothing is."""
    return tuple(islice(_message(request, "", 0, text_rules), MAX_VIOLATIONS))


def require_valid(request: Message, text_rules: TextRules = _NO_RULES) -> None:
    """Raises InvalidRequest with every violation of `check`."""
    violations = check(request, text_rules)
    if violations:
        raise invalid(*violations)


def resource_id(collection: str, name: str, field: str) -> str:
    """`web-1` of `vms/web-1`. Raises InvalidRequest about `field`."""
    head, _, tail = name.partition("/")
    if head != collection or _RESOURCE_ID.fullmatch(tail) is None:
        raise invalid(
            Violation(field, f"is not {collection}/{{id}} with an id of 1 to 63 characters a-z, 0-9 and -, beginning with a letter.")
        )
    return tail


def is_resource_id(text: str) -> bool:
    """Whether it may name a resource: 1 to 63 characters a-z, 0-9 and -, beginning with a letter, not ending with -."""
    return _RESOURCE_ID.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Whether it is a UUID in the 36-character lower-case form."""
    return _UUID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _FieldPlan:
    field: FieldDescriptor
    name: str
    required: bool
    is_map: bool
    repeated: bool
    full_name: str


@lru_cache(maxsize=1024)
def _plan(descriptor: Descriptor) -> tuple[_FieldPlan, ...]:
    """The fields of a message type that are looked at: all but OUTPUT_ONLY ones."""
    plans = []
    for field in descriptor.fields:
        behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if field_behavior_pb2.OUTPUT_ONLY in behaviors:
            continue
        entry = field.message_type
        is_map = entry is not None and entry.GetOptions().map_entry
        required = field_behavior_pb2.REQUIRED in behaviors
        plans.append(_FieldPlan(field, field.name, required, is_map, field.is_repeated, field.full_name))
    return tuple(plans)


def _message(message: Message, path: str, depth: int, rules: TextRules) -> Iterator[Violation]:
    if depth > MAX_DEPTH:
        yield Violation(path.removesuffix("."), f"is nested deeper than {MAX_DEPTH} messages; nothing of ours is.")
        return
    present = {field.name: value for field, value in message.ListFields()}
    for plan in _plan(message.DESCRIPTOR):
        if plan.name in present:
            yield from _field(plan, present[plan.name], path + plan.name, depth, rules)
        elif plan.required:
            yield Violation(path + plan.name, "is required; give it a value.")


def _field(plan: _FieldPlan, value: Any, path: str, depth: int, rules: TextRules) -> Iterator[Violation]:  # noqa: ANN401 a proto value
    if not plan.repeated:
        yield from _value(plan.field, plan.full_name, value, path, depth, rules)
        return
    if len(value) > MAX_ITEMS:
        yield Violation(path, f"has {len(value)} items; send at most {MAX_ITEMS}.")
        return
    if plan.is_map:
        yield from _map(plan, value, path, depth, rules)
        return
    for index, item in enumerate(value):
        yield from _value(plan.field, plan.full_name, item, f"{path}[{index}]", depth, rules)


def _map(plan: _FieldPlan, value: Any, path: str, depth: int, rules: TextRules) -> Iterator[Violation]:  # noqa: ANN401 a proto map
    assert plan.field.message_type is not None  # maps are repeated entry messages
    entry = plan.field.message_type.fields_by_name
    for key, item in value.items():
        bad_keys = tuple(_value(entry["key"], plan.full_name, key, path, depth, rules))
        if bad_keys:
            yield Violation(path, f"has a key that {bad_keys[0].description}")
        else:
            yield from _value(entry["value"], plan.full_name, item, f"{path}[{key}]", depth, rules)


def _value(field: FieldDescriptor, full_name: str, value: Any, path: str, depth: int, rules: TextRules) -> Iterable[Violation]:  # noqa: ANN401
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE | FieldDescriptor.TYPE_GROUP:
            return _message(value, f"{path}.", depth + 1, rules)
        case FieldDescriptor.TYPE_STRING:
            return _text(value, path, rules.get(full_name, _DEFAULT_TEXT))
        case FieldDescriptor.TYPE_ENUM if field.enum_type is not None and value not in field.enum_type.values_by_number:
            return (Violation(path, f"has the value {value}, which this version does not know; use one of the named values."),)
        case FieldDescriptor.TYPE_BYTES if len(value) > MAX_BYTES:
            return (Violation(path, f"is {len(value)} bytes; send at most {MAX_BYTES}."),)
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT if value - value != 0:
            return (Violation(path, "is not a finite number; give one that is."),)
    return ()


_DEFAULT_TEXT = TextRule()


def _text(value: str, path: str, rule: TextRule) -> Iterable[Violation]:
    if len(value) > rule.max_chars:
        return (Violation(path, f"is {len(value)} characters long; use at most {rule.max_chars}."),)
    bad = (_BAD_MULTILINE if rule.multiline else _BAD_CHARACTER).search(value)
    if bad:
        return (Violation(path, f"contains the character U+{ord(bad[0]):04X} at position {bad.start()}; leave control characters out."),)
    return ()
