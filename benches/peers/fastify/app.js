// The fastest peer that we know: fastify and onnxruntime-node, a process for each core. The same as ../fastapi_app.py does.
import cluster from "node:cluster";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import Fastify from "fastify";
import ort from "onnxruntime-node";

const { BUNDLE, PORT, PROCESSES = "2" } = process.env;

if (cluster.isPrimary) {
  for (let at = 0; at < Number(PROCESSES); at++) cluster.fork();
} else {
  const card = JSON.parse(readFileSync(`${BUNDLE}/manifest.json`, "utf8"));
  const { features, calibration: platt, graph } = card;
  const session = await ort.InferenceSession.create(`${BUNDLE}/model.onnx`, { intraOpNumThreads: 1, interOpNumThreads: 1 });
  const schema = {
    type: "object", additionalProperties: false, required: ["customer_id", "features"],
    properties: { customer_id: { type: "string" }, features: { type: "object" }, context: { type: "object" } },
  };
  const refuse = (text) => Object.assign(new Error(text), { statusCode: 422 });

  const encode = (customer, rows, offset) => {
    let at = offset;
    for (const feature of features) {
      let value = customer.features[feature.name];
      if (value === undefined || value === null) {
        if (feature.missing === "refuse") throw refuse(`${feature.name}: missing`);
        value = feature.missing === "nan" ? NaN : feature.missing.default;
      }
      if (feature.type === "category") {
        const found = feature.categories[value];
        if (!found) throw refuse(`${feature.name}: unknown category`);
        for (const column of found) rows[at++] = column;
      } else {
        if (typeof value !== "number" || value < feature.range.min || value > feature.range.max) throw refuse(`${feature.name}: out of range`);
        rows[at++] = value;
      }
    }
  };

  const run = async (customers) => {
    const rows = new Float32Array(customers.length * graph.columns);
    customers.forEach((customer, at) => encode(customer, rows, at * graph.columns));
    const tensor = new ort.Tensor("float32", rows, [customers.length, graph.columns]);
    const found = (await session.run({ [graph.input]: tensor }, [graph.output]))[graph.output].data;
    return customers.map((_, at) => found[at * graph.output_columns + graph.output_column]);
  };

  const decision = (probability) => {
    const odds = Math.log(Math.max(probability, 1e-12) / Math.max(1 - probability, 1e-12));
    const score = 1 / (1 + Math.exp(-(platt.a * odds + platt.b)));
    const [tier, action, cost, expected_effectiveness] =
      score > 0.8 ? ["high", "account_manager_call", 50, 0.4] : score >= 0.5 ? ["medium", "discount_email", 10, 0.2] : ["low", "engagement_email", 0.5, 0.05];
    return {
      decision_id: randomUUID(), decided_at: new Date().toISOString(), score, tier,
      intervention: { action, cost, currency: "USD", expected_effectiveness },
      model: { name: card.name, version: card.version, arm: "champion" }, policy_version: "0000000000000000",
    };
  };

  const app = Fastify({ bodyLimit: 64 << 20 });
  app.post("/v1/score", { schema: { body: schema } }, async (request) => decision((await run([request.body]))[0]));
  app.post("/v1/score/batch", { schema: { body: { type: "array", items: schema } } }, async (request) => ({
    results: (await run(request.body)).map(decision),
  }));
  app.get("/livez", async () => ({}));
  await app.listen({ host: "127.0.0.1", port: Number(PORT) });
}
