"""Data sets and feature dictionaries.

What lives here: the two source files (checked by sha256 before a byte is parsed), the feature dictionary of each as it
is written to the card, and the encoder from one raw row to float32 columns, by the rules the server follows.
What does not: anything learned from the data. The customers' rows never leave memory.
"""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DataError(Exception):
    """The source file or a row of it is not what the dictionary says."""


@dataclass(frozen=True)
class Source:
    """One published CSV and what the card says about it."""

    file: str
    sha256: str
    rows: int
    uri: str
    licence: str
    note: str
    target: str
    positive: str

    def lineage(self) -> dict:
        return {
            "uri": self.uri,
            "licence": self.licence,
            "sha256": self.sha256,
            "rows": self.rows,
            "window": {"from": None, "to": None, "note": self.note},
        }


TELCO = Source(
    file="telco_customer_churn.csv",
    sha256="16320c9c1ec72448db59aa0a26a0b95401046bef5d02fd3aeb906448e3055e91",
    rows=7043,
    uri="https://github.com/IBM/telco-customer-churn-on-icp4d/blob/d5371f5d83a446ad5673cbcca3b814b926491f8a"
    "/data/Telco-Customer-Churn.csv",
    licence="Apache-2.0",
    note="sample data of one quarter; the source gives no dates",
    target="Churn",
    positive="Yes",
)

MLC = Source(
    file="mlc_churn.csv",
    sha256="977e9701c245abc90ea21b882ffafea62d68e33ce2b50e1e9cfea44344cbffad",
    rows=5000,
    uri="https://github.com/tidymodels/modeldata/blob/5c22676a2deab18170885be4dd6e55068a669bb3/data/mlc_churn.RData",
    licence="MIT",
    note="artificial, 'based on claims similar to real world' (MLC++); no dates. The sha256 is of the CSV made from it",
    target="churn",
    positive="yes",
)


# --- dictionaries ---------------------------------------------------------------------------------------------------


def numeric(kind, name, source, owner, description, unit, top, hours, missing="refuse") -> dict:
    """A number or integer feature. `top` lies beyond the data's maximum on purpose: customers to come may exceed it."""
    entry = {"name": name, "type": kind, "source": source, "owner": owner, "description": description}
    if unit:
        entry["unit"] = unit
    return entry | {"range": {"min": 0, "max": top}, "missing": missing, "freshness_hours": hours}


def category(name, source, owner, description, categories, hours) -> dict:
    return {
        "name": name,
        "type": "category",
        "source": source,
        "owner": owner,
        "description": description,
        "categories": categories,
        # The model never saw another value or a blank: as all zeros it would get a plausible and wrong score.
        "unknown": "refuse",
        "missing": "refuse",
        "freshness_hours": hours,
    }


def one_hot(*values: str) -> dict:
    return {value: [int(value == other) for other in values] for value in values}


def yes_no(yes: str, *others: str) -> dict:
    return {value: [int(value == yes)] for value in sorted((yes, *others))}


def actionable(dictionary: list[dict], ways: dict) -> list[dict]:
    """The dictionary with what can be changed about a customer, and how."""
    assert ways.keys() <= {feature["name"] for feature in dictionary}
    return [
        feature | {"actionable": ways[feature["name"]]} if feature["name"] in ways else feature for feature in dictionary
    ]


# Terms that a company can agree on with a customer. An add-on can be booked or ended where there is a line for it; charges
# can be lowered, not raised. Not: how long somebody has been a customer, or which lines the home has.
TELCO_ACTIONABLE = {
    "MultipleLines": {"between": ["No", "Yes"]},
    **{
        name: {"between": ["No", "Yes"]}
        for name in (
            "OnlineSecurity", "OnlineBackup", "DeviceProtection", "TechSupport", "StreamingTV", "StreamingMovies",
        )
    },
    "Contract": {"steps": ["Month-to-month", "One year", "Two year"]},
    "PaperlessBilling": "any",
    "PaymentMethod": "any",
    "MonthlyCharges": "lower",
}  # fmt: skip
MLC_ACTIONABLE = {"international_plan": "any", "voice_mail_plan": "any"}


def telco_dictionary(total_charges_missing) -> list[dict]:
    """15 features, 22 columns, in the CSV's column order. Left out: customerID (identifier), gender and SeniorCitizen
    (protected), Partner and Dependents (household: close proxies of protected attributes, and not needed)."""
    plain = yes_no("Yes", "No")
    line = yes_no("Yes", "No", "No phone service")
    net = yes_no("Yes", "No", "No internet service")
    services, billing = "product-catalogue", "billing"

    def addon(name, what):
        return category(name, "catalogue.subscriptions", services, f"Whether the customer has {what}", net, 24)

    entries = [
        numeric("integer", "tenure", "billing.accounts", billing, "Months since the contract began", "months", 120, 24),
        category("PhoneService", "catalogue.subscriptions", services, "Whether the customer has telephone", plain, 24),
        category(
            "MultipleLines", "catalogue.subscriptions", services, "Whether there is more than one line", line, 24
        ),
        category(
            "InternetService",
            "catalogue.subscriptions",
            services,
            "Kind of Internet access",
            one_hot("DSL", "Fiber optic", "No"),
            24,
        ),
        addon("OnlineSecurity", "the security add-on"),
        addon("OnlineBackup", "the backup add-on"),
        addon("DeviceProtection", "the device protection add-on"),
        addon("TechSupport", "the technical support add-on"),
        addon("StreamingTV", "television streaming"),
        addon("StreamingMovies", "film streaming"),
        category(
            "Contract",
            "billing.contracts",
            billing,
            "Term of the contract",
            one_hot("Month-to-month", "One year", "Two year"),
            24,
        ),
        category("PaperlessBilling", "billing.accounts", billing, "Whether bills go out without paper", plain, 168),
        category(
            "PaymentMethod",
            "billing.payment_methods",
            billing,
            "How bills are paid",
            one_hot("Bank transfer (automatic)", "Credit card (automatic)", "Electronic check", "Mailed check"),
            168,
        ),
        numeric(
            "number", "MonthlyCharges", "billing.invoices", billing, "Charges of the current month", "USD", 500, 744
        ),
        numeric(
            "number",
            "TotalCharges",
            "billing.invoices",
            billing,
            "Charges since the contract began; missing until the first bill",
            "USD",
            20000,
            744,
            total_charges_missing,
        ),
    ]
    return actionable(entries, TELCO_ACTIONABLE)


def mlc_dictionary() -> list[dict]:
    """17 features, 17 columns. Left out: state and area_code (place: a proxy of protected attributes, 51 values)."""
    yes = yes_no("yes", "no")
    usage = "network-usage"
    entries = [
        # No unit: the source does not say what account_length counts.
        numeric(
            "integer", "account_length", "billing.accounts", "billing", "Age of the account as the source counts it",
            None, 1000, 24,
        ),
        category(
            "international_plan", "catalogue.plans", "product-catalogue", "Whether an international plan is held",
            yes, 24,
        ),
        category(
            "voice_mail_plan", "catalogue.plans", "product-catalogue", "Whether a voice mail plan is held", yes, 24
        ),
        numeric(
            "integer", "number_vmail_messages", "usage.voice_mail", usage, "Voice mail messages in the period",
            "messages", 500, 48,
        ),
    ]  # fmt: skip
    for key, words, minutes, charge in (
        ("day", "by day", 1440, 500),
        ("eve", "in the evening", 1440, 500),
        ("night", "at night", 1440, 500),
        ("intl", "abroad", 500, 200),
    ):
        entries += [
            numeric(
                "number", f"total_{key}_minutes", "usage.calls", usage, f"Minutes called {words}", "minutes", minutes,
                48,
            ),
            numeric("integer", f"total_{key}_calls", "usage.calls", usage, f"Calls made {words}", "calls", 1000, 48),
            numeric(
                "number", f"total_{key}_charge", "billing.invoices", "billing", f"Charge of calls {words}", "USD",
                charge, 48,
            ),
        ]  # fmt: skip
    entries.append(
        numeric(
            "integer", "number_customer_service_calls", "support.tickets", "customer-care",
            "Calls of the customer to customer service in the period", "calls", 100, 24,
        )
    )  # fmt: skip
    return actionable(entries, MLC_ACTIONABLE)


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Raw rows as a caller would send them (None: missing), and whether each customer left."""

    rows: list[dict]
    left: np.ndarray
    decimals: dict[str, int]  # how many the data writes, so that synthetic values look the same


def load(source: Source, dictionary: list[dict], directory: Path) -> Dataset:
    """Read one CSV. Refuses a file whose content is not the published one: same data, same bundle."""
    path = directory / source.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{source.file}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise DataError(f"{source.file}: sha256 is {found}, the trainer was written for {source.sha256}")
    table = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
    if len(table) != source.rows:
        raise DataError(f"{source.file}: {len(table)} rows, expected {source.rows}")

    rows = [{feature["name"]: _parse(feature, line[feature["name"]]) for feature in dictionary} for line in table]
    decimals = {
        feature["name"]: max(len(line[feature["name"]].strip().partition(".")[2]) for line in table)
        for feature in dictionary
        if feature["type"] == "number"
    }
    left = np.array([line[source.target] == source.positive for line in table], dtype=np.int64)
    return Dataset(rows, left, decimals)


def _parse(feature: dict, text: str):
    if not text.strip():
        return None
    return {"integer": int, "number": float, "category": str}[feature["type"]](text)


def width(feature: dict) -> int:
    return len(next(iter(feature["categories"].values()))) if feature["type"] == "category" else 1


def first_columns(dictionary: list[dict]) -> dict[str, int]:
    """The first input column of every feature."""
    starts, at = {}, 0
    for feature in dictionary:
        starts[feature["name"]] = at
        at += width(feature)
    return starts


def encode(dictionary: list[dict], rows: list[dict]) -> np.ndarray:
    """Rows to dense float32 columns in dictionary order. Dense, because in a sparse matrix XGBoost reads a zero as
    missing, and the exported graph cannot know that (scores then differ by up to .6, silently)."""
    return np.array([[x for f in dictionary for x in _columns(f, row.get(f["name"]))] for row in rows], np.float32)


def _columns(feature: dict, value) -> list[float]:
    name = feature["name"]
    if value is None:
        if feature["missing"] == "refuse":
            raise DataError(f"{name}: missing")
        if feature["missing"] == "nan":
            return [float("nan")]
        value = feature["missing"]["default"]
    if feature["type"] == "category":
        if value not in feature["categories"]:
            raise DataError(f"{name}: unknown category {value!r}")
        return feature["categories"][value]
    low, high = feature["range"]["min"], feature["range"]["max"]
    if not low <= value <= high or (feature["type"] == "integer" and value != int(value)):
        raise DataError(f"{name}: {value!r} is not a legal {feature['type']} within {low} to {high}")
    return [value]
