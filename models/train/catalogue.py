"""The four bundles: what each is trained on, with which parameters, and the words of its card.

What lives here: constants only. What does not: anything computed.
"""

from dataclasses import dataclass

from train.data import MLC, TELCO, Source, mlc_dictionary, telco_dictionary
from train.learners import Lightgbm, Logistic, Xgboost
from train.words import MLC as MLC_WORDS
from train.words import TELCO as TELCO_WORDS
from train.words import told

SEED = 42
CREATED = "2026-11-22T00:00:00Z"  # of this recipe, not of the run: a clock in a file would change it with every run
OWNER = "retention-data-science"
FOLDS = 5
HOLDOUT = 0.2
GATES = [("auc", ">=", 0.80), ("precision_at_20", ">=", 0.60), ("ece", "<=", 0.05)]


@dataclass(frozen=True)
class Recipe:
    name: str
    version: str
    title: str
    description: str
    limits: tuple[str, ...]
    source: Source
    dictionary: list
    learner: type
    parameters: dict
    publish_scores: bool = False  # of all source rows, as reference for the server's parity test


INTENDED_USE = (
    "Rank the customers of a subscription for a retention offer and give the probability that each leaves. Not for "
    "refusing service, setting an individual price, or any decision with legal effect."
)

TELCO_LIMITS = (
    "Sample data of one company and one quarter: train again on your own customers before any real decision.",
    "A high score says that a customer is likely to leave, not that an offer would keep the customer: measure lift "
    "against a randomised holdout.",
    "Gender and age are not inputs, yet senior customers are flagged about twice as often, because they leave more "
    "often in this data: measure fairness of the decisions.",
    "Tenure, monthly and total charges must describe the same day: TotalCharges is close to tenure times "
    "MonthlyCharges, and the model has not seen them disagree.",
)

RECIPES = [
    Recipe(
        name="telco-churn",
        version="1.0.0",
        title="Telephone and Internet churn",
        description="Probability that a customer of a telephone and Internet company leaves within the quarter: 300 "
        "boosted trees on contract, services and charges, calibrated.",
        limits=TELCO_LIMITS,
        source=TELCO,
        dictionary=told(telco_dictionary("nan"), TELCO_WORDS),
        learner=Xgboost,
        parameters={
            "trees": 300, "max_depth": 4, "eta": 0.02, "min_child_weight": 20, "lambda": 10, "subsample": 0.8,
            "colsample_bytree": 0.6,
        },
        publish_scores=True,
    ),
    Recipe(
        name="telco-churn",
        version="1.1.0",
        title="Telephone and Internet churn, LightGBM challenger",
        description="Challenger of 1.0.0 on the same features: 300 boosted trees of LightGBM, calibrated.",
        limits=TELCO_LIMITS,
        source=TELCO,
        dictionary=told(telco_dictionary("nan"), TELCO_WORDS),
        learner=Lightgbm,
        parameters={
            "trees": 300, "num_leaves": 8, "learning_rate": 0.03, "min_data_in_leaf": 40, "lambda_l2": 5,
            "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.6,
        },
    ),
    Recipe(
        name="telco-churn",
        version="1.2.0",
        title="Telephone and Internet churn, logistic challenger",
        description="Challenger of 1.0.0 on the same features: logistic regression, calibrated. The standardisation is "
        "multiplied into the coefficients, so that the graph takes raw columns.",
        limits=(
            *TELCO_LIMITS,
            "A linear model: the effect of a feature is the same whatever the other features are.",
        ),
        source=TELCO,
        dictionary=told(telco_dictionary({"default": 0}), TELCO_WORDS),
        learner=Logistic,
        parameters={"C": 1.0, "penalty": "l2", "standardised": True},
    ),
    Recipe(
        name="mlc-churn",
        version="1.0.0",
        title="Mobile telephone churn",
        description="Probability that a customer of a mobile telephone company leaves: 300 boosted trees on plans, "
        "usage and calls to customer service, calibrated.",
        limits=(
            "Artificial data made to resemble real records: it shows the service, it does not describe a market.",
            "A high score says that a customer is likely to leave, not that an offer would keep the customer: measure "
            "lift against a randomised holdout.",
            "Each charge is a fixed multiple of its minutes: the model has not seen them disagree.",
            "The source states no period for the usage figures; they must cover one period of the same length for "
            "every customer.",
        ),
        source=MLC,
        dictionary=told(mlc_dictionary(), MLC_WORDS),
        learner=Xgboost,
        parameters={
            "trees": 300, "max_depth": 5, "eta": 0.02, "min_child_weight": 1, "lambda": 1, "subsample": 0.8,
            "colsample_bytree": 0.8,
        },
        publish_scores=True,
    ),
]  # fmt: skip
