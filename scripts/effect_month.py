"""A simulated month: customers who are drawn from the bundle's baseline, decided on by the service, and leave as chance has it. What
interventions do to them is set here, so what the service concludes can be held against the truth."""

import json
import random
import statistics

from evidence import Client
from ledger_load import customers
from server import ROOT

BUNDLE = ROOT / "models" / "telco-churn" / "1.0.0"
# By how much less those leave who are offered this, as a share: not what the policy expects.
EFFECTS = {"account_manager_call": 0.5, "retention_offer": 0.35, "discount_email": 0.25, "engagement_email": 0.1, "none": 0.0}
GROUPS = {"a": 0.5, "b": 0.3, "c": 0.2}
OUTCOMES, BATCH = 1_000, 2_000


class Month:
    """One month of `count` customers, the same for the same `seed`; `shift` changes the features of a customer."""

    def __init__(self, seed, count, shift=None):
        self.random = random.Random(seed)
        self.rows = []
        for number, body in enumerate(customers.bodies(BUNDLE, count, seed)):
            row = json.loads(body)
            row["customer_id"] = f"S{seed}-{number}"
            group = self.random.choices(list(GROUPS), GROUPS.values())[0]
            row["context"] = {"clv": round(min(self.random.lognormvariate(6.2, 0.8), 100_000), 2), "region": "EU", "audit": {"group": group}}
            if shift:
                shift(row["features"], self.random)
            self.rows.append(row)
        self.decisions = []

    def decide(self, address):
        client = Client(address)
        for at in range(0, len(self.rows), BATCH):
            self.decisions += client.json("POST", "/v1/score/batch", self.rows[at : at + BATCH])["results"]
        client.close()

    def churn(self, decision):
        """The true probability that this customer leaves."""
        return decision["score"] * (1 - EFFECTS[decision["intervention"]["action"]])

    def live(self, address, harm=lambda decision: 1):
        """Lets the month go by: who leaves is told. `harm` says how many times as often a customer leaves, by the decision."""
        client, told = Client(address), []
        self.left = [self.random.random() < self.churn(decision) * harm(decision) for decision in self.decisions]
        for decision, left in zip(self.decisions, self.left):
            if left:
                told.append({"decision_id": decision["decision_id"], "occurred_at": decision["decided_at"], "churned": True})
        for at in range(0, len(told), OUTCOMES):
            answer = client.json("POST", "/v1/outcomes", told[at : at + OUTCOMES])
            assert all(result.get("recorded") for result in answer["results"]), answer
        client.close()

    def selection(self):
        """By group: the share that was offered anything, of who was not held out."""
        rates = {}
        for group in GROUPS:
            offered = [decision["intervention"]["action"] != "none" for row, decision in zip(self.rows, self.decisions)
                       if row["context"]["audit"]["group"] == group and not decision.get("holdout")]
            rates[group] = statistics.fmean(offered)
        return rates


def true_reduction(months):
    """By what share interventions cut churn, of the customers of all months who were not held out."""
    treated = [(month.churn(decision), decision["score"]) for month in months for decision in month.decisions if not decision.get("holdout")]
    return 1 - sum(after for after, _ in treated) / sum(before for _, before in treated)
