"""Reasons: the words in which the server tells a feature as the reason of a score.

What lives here: for each feature a stable code and two sentences, one for a value that raises the risk, one for a value
that lowers it. What does not: any number. A code may be used by other systems: it never changes its meaning.
"""


def _addon(code: str, what: str) -> tuple[str, str, str]:
    return code, f"Whether {what} is booked raises the risk.", f"Whether {what} is booked lowers the risk."


TELCO = {
    "tenure": ("tenure", "The customer has not been here for long.", "The customer has been here for long."),
    "PhoneService": _addon("phone_service", "telephone"),
    "MultipleLines": _addon("multiple_lines", "a second line"),
    "InternetService": (
        "internet_service",
        "Customers with this kind of Internet access leave more often.",
        "Customers with this kind of Internet access leave less often.",
    ),
    "OnlineSecurity": _addon("online_security", "the security add-on"),
    "OnlineBackup": _addon("online_backup", "the backup add-on"),
    "DeviceProtection": _addon("device_protection", "the device protection add-on"),
    "TechSupport": _addon("tech_support", "the technical support add-on"),
    "StreamingTV": _addon("streaming_tv", "television streaming"),
    "StreamingMovies": _addon("streaming_movies", "film streaming"),
    "Contract": (
        "contract_term",
        "The contract can be ended soon.",
        "The contract binds for long.",
    ),
    "PaperlessBilling": (
        "paperless_billing",
        "Customers with this way of billing leave more often.",
        "Customers with this way of billing leave less often.",
    ),
    "PaymentMethod": (
        "payment_method",
        "Customers who pay this way leave more often.",
        "Customers who pay this way leave less often.",
    ),
    "MonthlyCharges": (
        "monthly_charges",
        "At these monthly charges customers leave more often.",
        "At these monthly charges customers leave less often.",
    ),
    "TotalCharges": (
        "total_charges",
        "At this sum of charges so far customers leave more often.",
        "At this sum of charges so far customers leave less often.",
    ),
}


def _usage(name: str, what: str) -> tuple[str, str, str]:
    return name, f"{what} raise the risk.", f"{what} lower the risk."


MLC = {
    "account_length": (
        "account_length", "At this age of the account customers leave more often.",
        "At this age of the account customers leave less often.",
    ),
    "international_plan": _addon("international_plan", "an international plan"),
    "voice_mail_plan": _addon("voice_mail_plan", "a voice mail plan"),
    "number_vmail_messages": _usage("number_vmail_messages", "So many voice mail messages"),
    "number_customer_service_calls": _usage("number_customer_service_calls", "So many calls to customer service"),
}  # fmt: skip
for _key, _when in (("day", "by day"), ("eve", "in the evening"), ("night", "at night"), ("intl", "abroad")):
    for _unit, _what in (("minutes", "So many minutes called"), ("calls", "So many calls")):
        MLC[f"total_{_key}_{_unit}"] = _usage(f"total_{_key}_{_unit}", f"{_what} {_when}")
    MLC[f"total_{_key}_charge"] = _usage(f"total_{_key}_charge", f"Charges of this height for calls {_when}")


def told(dictionary: list[dict], words: dict[str, tuple[str, str, str]]) -> list[dict]:
    """The dictionary with the words of every feature."""
    return [
        feature | {"reason": dict(zip(("code", "raises", "lowers"), words[feature["name"]], strict=True))}
        for feature in dictionary
    ]
