"""The service as most would write it: FastAPI and onnxruntime. It encodes, scores, calibrates and names tier and intervention as
Mainstay's default policy does. It keeps no record and has none of the rest."""

import json
import math
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from fastapi.responses import ORJSONResponse
from pydantic import BaseModel, ConfigDict

BUNDLE = Path(os.environ["BUNDLE"])
CARD = json.loads((BUNDLE / "manifest.json").read_text())
FEATURES, PLATT, GRAPH = CARD["features"], CARD["calibration"], CARD["graph"]

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(str(BUNDLE / "model.onnx"), options, providers=["CPUExecutionProvider"])
app = FastAPI(default_response_class=ORJSONResponse)


class Customer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    customer_id: str
    features: dict[str, float | str | None]
    context: dict | None = None


def columns(feature, value, row):
    name = feature["name"]
    if value is None:
        if feature["missing"] == "refuse":
            raise HTTPException(422, f"{name}: missing")
        if feature["missing"] == "nan":
            row.append(float("nan"))
            return
        value = feature["missing"]["default"]
    if feature["type"] == "category":
        found = feature["categories"].get(value)
        if found is None:
            raise HTTPException(422, f"{name}: unknown category")
        row.extend(found)
    else:
        bounds = feature["range"]
        if isinstance(value, str) or not bounds["min"] <= value <= bounds["max"]:
            raise HTTPException(422, f"{name}: out of range")
        row.append(value)


def encode(customer):
    row = []
    for feature in FEATURES:
        columns(feature, customer.features.get(feature["name"]), row)
    return row


def decision(probability):
    odds = math.log(max(probability, 1e-12) / max(1 - probability, 1e-12))
    score = 1 / (1 + math.exp(-(PLATT["a"] * odds + PLATT["b"])))
    if score > 0.8:
        tier, action, cost, effect = "high", "account_manager_call", 50.0, 0.4
    elif score >= 0.5:
        tier, action, cost, effect = "medium", "discount_email", 10.0, 0.2
    else:
        tier, action, cost, effect = "low", "engagement_email", 0.5, 0.05
    return {
        "decision_id": str(uuid.uuid4()), "decided_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "score": score, "tier": tier,
        "intervention": {"action": action, "cost": cost, "currency": "USD", "expected_effectiveness": effect},
        "model": {"name": CARD["name"], "version": CARD["version"], "arm": "champion"}, "policy_version": "0000000000000000",
    }


def run(rows):
    found = session.run([GRAPH["output"]], {GRAPH["input"]: np.asarray(rows, dtype=np.float32)})[0]
    return found[:, GRAPH["output_column"]].tolist()


@app.post("/v1/score")
async def score(customer: Customer):
    return ORJSONResponse(decision(run([encode(customer)])[0]))


@app.post("/v1/score/batch")
async def batch(customers: list[Customer]):
    return ORJSONResponse({"results": [decision(probability) for probability in run([encode(customer) for customer in customers])]})


@app.get("/livez")
async def livez():
    return {}
