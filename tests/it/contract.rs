//! The contract: the committed one is the code's, and the served one tells of every model.

use serde_json::{Value, json};

use crate::service::shared;

#[test]
fn the_committed_contract_is_the_one_of_the_code() {
    for (file, admin) in [("openapi/mainstay.yaml", false), ("openapi/admin.yaml", true)] {
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        let current = committed == mainstay::http::contract_yaml(admin);
        assert!(current, "{file} is stale: run `make openapi` and commit it");
    }
}

#[tokio::test]
async fn the_served_contract_has_every_feature_of_every_model() {
    let contract = shared().get("/openapi.json").await.json();
    for model in ["telco-churn", "mlc-churn"] {
        let card = shared().get(&format!("/v1/models/{model}")).await.json()["card"].clone();
        let schema = &contract["components"]["schemas"][format!("Features.{model}")];
        assert_eq!(schema["additionalProperties"], json!(false));
        for feature in card["features"].as_array().expect("features") {
            let name = feature["name"].as_str().expect("a name");
            assert!(schema["properties"][name]["type"] != Value::Null, "{model}: {name}");
        }
        // What can be asked of any model can be asked of this one by its name.
        for path in ["score", "score/batch"] {
            let parameters = |path: String| {
                let parameters = contract["paths"][&path]["post"]["parameters"].as_array();
                let parameters = parameters.unwrap_or_else(|| panic!("parameters of {path}")).iter();
                parameters.map(|parameter| parameter["name"].to_string()).collect::<Vec<_>>()
            };
            let own = parameters(format!("/v1/models/{model}/{path}"));
            assert_eq!(own, parameters(format!("/v1/{path}")));
            assert!(own.len() >= 3, "{own:?}");
        }
    }
    let default = &contract["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(default, &json!({"$ref": "#/components/schemas/Customer.telco-churn"}));
}

#[tokio::test]
async fn the_admin_plane_serves_its_own_contract() {
    let contract = shared().get_admin("/openapi.json").await;
    assert_eq!((contract.status, contract.header("content-type")), (200, "application/json"));
    assert!(contract.json()["paths"]["/v1/slots"].is_object(), "{}", contract.text);
    assert_eq!(shared().get_admin("/openapi.json").await.text, contract.text);
}

#[tokio::test]
async fn the_example_of_the_contract_is_answered() {
    let contract = shared().get("/openapi.json").await.json();
    for (path, schema) in [("/v1/score", "Customer.telco-churn"), ("/v1/models/mlc-churn/score", "Customer.mlc-churn")]
    {
        let example = &contract["components"]["schemas"][schema]["examples"][0];
        assert_eq!(shared().post(path, example).await.status, 200, "{example}");
    }
}
