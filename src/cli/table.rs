//! Answers of the service as tables for people: slots with their rollout, how two ways to decide differ, what a policy would have done.

use serde_json::Value;

/// Cells of a table.
pub(super) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Rows as columns that stand under each other.
pub(super) fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The slots of one model, with its rollout.
pub(super) fn table(slots: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = vec![row(&["slot", "state", "role", "version", "share", "since", "memory", "requests", "p99"])];
    for slot in slots["slots"].as_array().into_iter().flatten() {
        let mib =
            slot["memory_bytes"].as_f64().map_or("-".to_owned(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0));
        rows.push(vec![
            text(&slot["slot"]),
            text(&slot["state"]),
            text(&slot["role"]),
            text(&slot["version"]),
            format!("{}%", slot["share"].as_f64().unwrap_or(0.0) * 100.0),
            text(&slot["since"]),
            mib,
            slot["requests"].as_u64().map_or("-".to_owned(), |requests| requests.to_string()),
            slot["row_p99_us"].as_f64().map_or("-".to_owned(), |us| format!("{us:.1} us")),
        ]);
    }
    let policy = &slots["policy"];
    let mut out = format!(
        "{} (policy {} {})\n{}",
        text(&slots["model"]),
        text(&policy["name"]),
        text(&policy["version"]),
        aligned(rows)
    );
    let guardrails = |readings: &Value| {
        let readings = readings.as_array().into_iter().flatten();
        aligned(
            readings
                .map(|r| row(&["  ", &text(&r["guardrail"]), &text(&r["verdict"]), &text(&r["figures"])]))
                .collect(),
        )
    };
    if let Some(rollout) = slots["rollout"].as_object() {
        let steps = rollout["steps"].as_array().map_or(0, Vec::len);
        out += &format!(
            "rollout {} {}: {} step {} of {steps} since {}, verdict {}\n{}",
            text(&rollout["id"]),
            text(&rollout["state"]),
            text(&rollout["exposure"]),
            rollout["step"],
            text(&rollout["step_since"]),
            text(&rollout["verdict"]),
            guardrails(&rollout["guardrails"])
        );
    } else if let Some(ended) = slots["last_rollout"].as_object() {
        out += &format!(
            "last rollout: {} {} at step {}, {}\n{}",
            text(&ended["version"]),
            text(&ended["end"]).replace('_', " "),
            ended["step"],
            text(&ended["at"]),
            guardrails(&ended["guardrails"])
        );
    }
    let legal: Vec<String> = slots["legal"].as_array().into_iter().flatten().map(text).collect();
    out += &format!("legal now: {}\n", legal.join(", "));
    let missing: Vec<String> = slots["approvals_missing"].as_array().into_iter().flatten().map(text).collect();
    if !missing.is_empty() {
        out += &format!("a promotion needs the approval of: {}\n", missing.join(", "));
    }
    out
}

/// How two ways to decide differ.
pub(super) fn comparison(found: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|name| name.as_str().unwrap_or("-").to_owned()).collect()
    };
    let expected = match (&found["expected_value_after"], &found["expected_value_before"]) {
        (Value::Null, _) => String::new(),
        (after, Value::Null) => format!("they are expected to be worth {:.2}\n", number(after)),
        (after, before) => {
            format!("they are expected to be worth {:.2} instead of {:.2}\n", number(after), number(before))
        }
    };
    let difference = &found["score_difference"];
    let mut rows = vec![[vec!["before \\ after".to_owned()], names(&found["tiers_after"])].concat()];
    for (tier, counts) in
        names(&found["tiers_before"]).into_iter().zip(found["migration"].as_array().into_iter().flatten())
    {
        rows.push(std::iter::once(tier).chain(counts.as_array().into_iter().flatten().map(Value::to_string)).collect());
    }
    let quantiles = difference["quantiles"].as_array().into_iter().flatten();
    let quantiles: Vec<String> =
        quantiles.map(|pair| format!("{} {:+.4}", pair[0].as_str().unwrap_or_default(), number(&pair[1]))).collect();
    format!(
        "{} decisions on record ({} could not be made again)\nscores: mean {:+.4}, mean size {:.4}, greatest {:.4}; {}\n{}{:.2} % change tier; interventions cost {:.2} instead of {:.2} {}\n",
        found["rows"],
        found["skipped"],
        number(&difference["mean"]),
        number(&difference["mean_size"]),
        number(&difference["size_max"]),
        quantiles.join(", "),
        aligned(rows),
        number(&found["moved_share"]) * 100.0,
        number(&found["cost_after"]),
        number(&found["cost_before"]),
        found["currency"].as_str().unwrap_or_default()
    ) + &expected
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.2}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// An estimate or a ratio with its interval.
fn within(value: &Value) -> String {
    if value.is_null() {
        "-".to_owned()
    } else {
        format!("{} ({} to {})", word(&value["value"]), word(&value["low"]), word(&value["high"]))
    }
}

/// What `count` says of each name of `what` before and after, where either has any.
fn beside(found: &Value, list_name: &str, name: &str) -> Vec<Vec<String>> {
    let sides = [&found["before"], &found["after"]];
    let mut names: Vec<&Value> = Vec::new();
    for entry in sides.iter().flat_map(|side| list(&side[list_name])) {
        if entry["decisions"] != 0 && !names.contains(&&entry[name]) {
            names.push(&entry[name]);
        }
    }
    let count = |side: &Value, wanted: &Value| {
        let entry = list(&side[list_name]).find(|entry| entry[name] == *wanted);
        entry.map_or("-".to_owned(), |entry| word(&entry["decisions"]))
    };
    names
        .into_iter()
        .map(|wanted| vec![format!("  {}", word(wanted)), count(sides[0], wanted), count(sides[1], wanted)])
        .collect()
}

/// Groups that are flagged.
pub(super) fn flags(found: &Value) -> String {
    let flagged = list(&found["flagged"]).map(|flag| {
        format!(
            "  {} {} ({} customers): {} times as often as {}, {}; before {}\n",
            word(&flag["attribute"]),
            word(&flag["group"]),
            flag["customers"],
            within(&flag["parity"]),
            word(&flag["reference"]),
            word(&flag["verdict"]),
            within(&flag["parity_before"])
        )
    });
    let flagged: String = flagged.collect();
    let attributes: Vec<String> = list(&found["attributes"]).map(word).collect();
    match (attributes.as_slice(), flagged.as_str()) {
        ([], _) => "compliance: no groups of context.audit to compare\n".to_owned(),
        (_, "") => format!("compliance: no group is flagged by {}\n", attributes.join(", ")),
        _ => format!("compliance: flagged, offered something less than 0.8 times as often\n{flagged}"),
    }
}

/// What a policy would have made of recorded decisions.
pub(super) fn simulation(found: &Value) -> String {
    let (before, after, made) = (&found["before"], &found["after"], &found["decisions"]);
    let mut rows = vec![row(&["", "before", "after"])];
    let mut pair = |name: &str, of: &dyn Fn(&Value) -> String| rows.push(vec![name.to_owned(), of(before), of(after)]);
    pair("policy", &|side| format!("{} {}", word(&side["policy"]), word(&side["policy_version"])));
    pair("cost", &|side| format!("{} {}", word(&side["cost"]), word(&side["currency"])));
    pair("expected value", &|side| word(&side["expected_value"]));
    pair("held out", &|side| word(&side["held_out"]));
    pair("budget", &|side| match &side["budget"] {
        Value::Null => "-".to_owned(),
        budget => format!(
            "{} a {}, {} refused, {} priced out",
            word(&budget["amount"]),
            word(&budget["period"]),
            budget["refused"],
            budget["priced_out"]
        ),
    });
    for (title, list_name, name) in [
        ("tiers", "tiers", "tier"),
        ("interventions", "interventions", "action"),
        ("segments", "segments", "segment"),
        ("rules", "rules", "rule"),
    ] {
        let counted = beside(found, list_name, name);
        if !counted.is_empty() {
            rows.push(row(&[title]));
            rows.extend(counted);
        }
    }
    let reward = word(&found["reward"]);
    rows.push(row(&[&format!("{reward} per customer, by outcomes")]));
    for (title, name) in [
        ("  recorded", "recorded"),
        ("  ips", "ips"),
        ("  snips", "snips"),
        ("  doubly robust", "doubly_robust"),
        ("  lift", "lift"),
    ] {
        rows.push(vec![title.to_owned(), within(&before["value"][name]), within(&after["value"][name])]);
    }
    let effective = |side: &Value| match &side["value"] {
        Value::Null => "-".to_owned(),
        value => format!("{} of {}", word(&value["effective_rows"]), value["customers"]),
    };
    rows.push(vec!["  effective rows".to_owned(), effective(before), effective(after)]);
    let mut text = format!(
        "{}: {} decisions on {} customers, {} to {} ({} more could not be made again)\n{}",
        word(&found["model"]),
        made["usable"],
        made["customers"],
        word(&made["from"]),
        word(&made["to"]),
        made["looked_at"].as_u64().unwrap_or(0).saturating_sub(made["usable"].as_u64().unwrap_or(0)),
        aligned(rows)
    );
    text += &periods(after);
    text += &format!("actions, {} % of them changed\n", percent(&found["action_changed_share"]));
    let change = |entry: &Value| {
        vec![format!("  {} -> {}", word(&entry["before"]), word(&entry["after"])), word(&entry["decisions"])]
    };
    text += &aligned(list(&found["action_changes"]).map(change).collect());
    text += &fairness(after);
    text += &flags(&found["compliance"]);
    list(&found["warnings"]).for_each(|warning| text += &format!("beware: {}\n", word(warning)));
    text
}

fn percent(share: &Value) -> String {
    share.as_f64().map_or("-".to_owned(), |share| format!("{:.1}", share * 100.0))
}

/// What was spent of a budget, period by period.
fn periods(side: &Value) -> String {
    let spent = list(&side["budget"]["periods"])
        .map(|period| vec![format!("  {}", word(&period["from"])), word(&period["decisions"]), word(&period["spent"])]);
    let spent: Vec<Vec<String>> = spent.collect();
    if spent.is_empty() {
        String::new()
    } else {
        aligned([vec![row(&["budget after, from", "decisions", "spent"])], spent].concat())
    }
}

/// How the groups of each attribute compare.
fn fairness(side: &Value) -> String {
    let mut rows = vec![row(&["groups after", "customers", "rate", "mean cost", "parity", "verdict"])];
    for attribute in list(&side["fairness"]) {
        for group in list(&attribute["groups"]) {
            let verdict = if group["reference"] == true { "reference".to_owned() } else { word(&group["verdict"]) };
            rows.push(vec![
                format!("  {} {}", word(&attribute["attribute"]), word(&group["group"])),
                word(&group["customers"]),
                word(&group["selection_rate"]),
                word(&group["cost_mean"]),
                within(&group["parity"]),
                verdict,
            ]);
        }
    }
    if rows.len() == 1 { String::new() } else { aligned(rows) }
}
