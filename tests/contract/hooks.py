"""What Schemathesis cannot know of a batch: that it is judged row by row, and how NDJSON is written."""

import json
from functools import lru_cache
from pathlib import Path

import jsonschema_rs
import schemathesis
from hypothesis import strategies as st

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
# Of a row that was not begun by the caller's own deadline.
LATE = "deadline_exceeded"
# Of a request, or a row, for an arm that is not there; the header that asks for it.
NO_ARM, ARM = "arm_not_addressable", "x-mainstay-arm"
DATA = Path(__file__).parent.parent / "data"
CUSTOMER = json.loads((DATA / "customer.json").read_text())

values = st.none() | st.booleans() | st.integers(-10, 10_000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)


@st.composite
def line(draw):
    """A customer as it should be, one with a value changed, taken away or added, or no customer at all."""
    kind = draw(st.sampled_from(["whole", "changed", "less", "more", "value", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=24)).replace(b"\n", b" ")
    if kind == "value":
        return json.dumps(draw(values)).encode()
    features = dict(CUSTOMER["features"])
    name = draw(st.sampled_from(sorted(features)))
    if kind == "changed":
        features[name] = draw(values)
    elif kind == "less":
        del features[name]
    elif kind == "more":
        features[draw(st.text(max_size=8))] = draw(values)
    customer = {"customer_id": draw(st.text(max_size=4)) if kind == "changed" else "C-1", "features": features}
    return json.dumps(customer, ensure_ascii=draw(st.booleans())).encode()


ends = st.sampled_from([b"\n", b"\r\n", b"\n\n"])
# Broken streams are the business of tests/it/arrow.rs.
schemathesis.openapi.media_type(ARROW, st.just((DATA / "customers.arrow").read_bytes()))
@schemathesis.deserializer(ARROW)
def columns(ctx, response):
    """Columns as the contract has them: bytes."""
    return response.content.decode("latin-1")


schemathesis.openapi.media_type(NDJSON, st.lists(st.tuples(line(), ends).map(b"".join), max_size=12).map(b"".join))


@schemathesis.check
def every_row_is_judged(ctx, response, case):
    """An answered batch has an item for each row, in its place: a problem for a row that breaks the row's schema, a decision
    for one that does not. (By the generic path, a row that keeps the schema may still break the model's dictionary.)"""
    if not case.operation.path.endswith("/batch") or response.status_code != 200:
        return
    if response.request.headers.get("Content-Type", "").startswith(ARROW):
        return
    document = case.operation.schema.raw_schema
    body = response.request.body or b""
    body = body.encode() if isinstance(body, str) else body
    if response.request.headers.get("Content-Type", "").startswith(NDJSON):
        # An empty line is no row, and a line of ASCII white space is empty.
        rows = [_parsed(text) for text in body.split(b"\n") if text.strip(b" \t\r\f")]
        items = [json.loads(text) for text in response.content.splitlines()]
    else:
        rows = [(True, row) for row in json.loads(body)]
        items = response.json()["results"]
    if items and items[-1].get("code") == LATE and len(items) != len(rows):
        # The caller's time was up in the middle of a stream: its last line says so, and the rows behind it are not looked at.
        items.pop()
        del rows[len(items):]
    if len(items) != len(rows):
        raise AssertionError(f"{len(rows)} rows have {len(items)} answers")
    row_schema = document["paths"][case.operation.path]["post"]["requestBody"]["content"]["application/json"]["schema"]["items"]
    legal_row, legal_item = _validator(_key(document, row_schema["$ref"])), _validator(_key(document, "#/components/schemas/Item"))
    generic = "{model}" in case.operation.path
    for number, ((is_json, row), item) in enumerate(zip(rows, items)):
        if not legal_item.is_valid(item):
            raise AssertionError(f"the answer to row {number} breaks the schema of an item: {item}")
        legal, decided = is_json and legal_row.is_valid(row), "decision_id" in item
        if decided and not legal:
            raise AssertionError(f"row {number} breaks its schema and was decided on: {row}")
        if item.get("code") == LATE or item.get("code") == NO_ARM and ARM in _headers(case):
            continue
        if legal and not decided and not generic:
            raise AssertionError(f"row {number} keeps its schema and was refused: {row}: {item}")
        if not decided and not 400 <= item["status"] < 500:
            raise AssertionError(f"row {number} made the server fail: {row}: {item}")


@schemathesis.check
def refused_for_a_known_reason(ctx, response, case):
    """A 504 is of a caller who said how long it waits, a 403 of one who asked for the challenger where there is none. A batch that keeps the
    contract is refused only for what that cannot say: a budget where the policy knows none or in a stream, and columns of another model."""
    query, headers = case.query or {}, _headers(case)
    if response.status_code == 504 and ("x-request-timeout-ms" not in headers or response.json()["code"] != LATE):
        raise AssertionError("nobody said how long to wait, and the server gave up")
    if response.status_code == 403 and (ARM not in headers or response.json()["code"] != NO_ARM):
        raise AssertionError("a caller who asked for no arm is shut out")
    is_whole = case.meta is not None and case.meta.generation.mode.is_positive
    if not is_whole or not case.operation.path.endswith("/batch") or response.status_code not in (415, 422):
        return
    is_columns = response.request.headers.get("Content-Type", "").startswith(ARROW)
    of_budget = [error["pointer"] for error in response.json().get("errors", [])] == ["/budget"]
    if response.status_code == 415 and "budget" not in query:
        raise AssertionError("a body of a type that the contract has is refused")
    if response.status_code == 422 and not (is_columns or of_budget and "budget" in query):
        raise AssertionError("a batch that keeps the contract is refused")


@schemathesis.hook
def filter_case(context, case):
    """A header that nobody knows is no violation of anything."""
    return "x-schemathesis-unknown-property" not in _headers(case)


def _headers(case):
    return {name.lower() for name in (case.headers or {})}


def _parsed(text):
    """Whether the text is JSON, and its value. Python also reads NaN and infinities, which JSON has not."""
    try:
        return True, json.loads(text.decode("utf-8"), parse_constant=lambda name: [][0])
    except (ValueError, IndexError, RecursionError):
        return False, None


def _key(document, reference):
    return json.dumps({"$ref": reference, "components": document["components"]}, sort_keys=True)


@lru_cache
def _validator(schema):
    return jsonschema_rs.Draft202012Validator(json.loads(schema))
