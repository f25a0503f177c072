//! The contract as a document: OpenAPI 3.1, generated from the router's table.

use serde_json::{Map, Value, json};

use super::routes::{ENDPOINTS, Endpoint, PROBLEM};
use crate::page::Page;
use crate::problem;

/// Returns the OpenAPI document, as specified in <https://spec.openapis.org/oas/v3.1.1.html>.
pub fn document() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "The shop",
            "version": "1.0.0",
            "description": "Within /v1 fields may be added; none is removed or changes its meaning.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
            },
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut operation = json!({
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "parameters": parameters(endpoint),
        "responses": endpoint.answers.iter().map(answer).collect::<Map<_, _>>(),
    });
    if endpoint.rate.is_some() {
        operation["security"] = json!([{ "token": [] }]);
    }
    if let Some(schema) = endpoint.body {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": body(schema) } });
    }
    operation
}

fn parameters(endpoint: &Endpoint) -> Vec<Value> {
    let in_path = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<_> = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if endpoint.operation == "placeOrder" {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Requests of a customer with the same key within 24 hours create one order.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
        }));
    }
    if endpoint.paged {
        let limit = json!({ "type": "integer", "minimum": 1, "maximum": Page::LARGEST, "default": Page::LARGEST });
        parameters.push(json!({ "name": "limit", "in": "query", "schema": limit }));
        let description = "The next of the page before";
        let text = json!({ "type": "string" });
        parameters.push(json!({ "name": "after", "in": "query", "description": description, "schema": text }));
    }
    parameters
}

fn answer(&(status, description, schema): &(u16, &str, &str)) -> (String, Value) {
    let media = if schema == PROBLEM { problem::CONTENT_TYPE } else { "application/json" };
    (status.to_string(), json!({ "description": description, "content": { media: body(schema) } }))
}

fn body(schema: &str) -> Value {
    json!({ "schema": { "$ref": format!("#/components/schemas/{schema}") } })
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let number = json!({ "type": "integer", "format": "int64" });
    let list = |of: Value| json!({ "type": "array", "items": of });
    let part = json!({ "type": ["object", "null"] });
    let cursor = json!({ "type": ["string", "null"], "description": "The after of the next page, if there is one" });
    json!({
        // The customer is in the token.
        "OrderDraft": object(&[
            ("items", list(object(&[
                ("sku", text.clone()),
                ("quantity", json!({ "type": "integer", "minimum": 1, "maximum": 1000 })),
            ]))),
        ]),
        "Order": object(&[
            ("id", text.clone()),
            ("customer", text.clone()),
            ("total_cents", number.clone()),
            ("state", json!({ "enum": ["pending", "confirmed", "cancelled"] })),
            ("failure", json!({ "type": ["string", "null"] })),
        ]),
        "OrderView": object(&[
            ("id", text.clone()),
            ("order", part.clone()),
            ("payment", part.clone()),
            ("inventory", part.clone()),
            ("shipping", part),
            ("missing", list(text.clone())),
        ]),
        "Products": object(&[
            ("products", list(object(&[
                ("sku", text.clone()),
                ("name", text.clone()),
                ("price_cents", number.clone()),
                ("on_hand", number.clone()),
            ]))),
            ("next", cursor.clone()),
        ]),
        "OldCatalogue": object(&[("items", list(object(&[
            ("code", text.clone()),
            ("title", text.clone()),
            ("price", text.clone()),
            ("available", json!({ "type": "boolean" })),
        ])))]),
        "OldCustomer": object(&[
            ("customer_no", text.clone()),
            ("name", text.clone()),
            ("customer_since", text.clone()),
        ]),
        "OldReview": object(&[
            ("author", text.clone()),
            ("stars", json!({ "type": "integer", "minimum": 1, "maximum": 5 })),
            ("text", text.clone()),
        ]),
        "OldReviews": object(&[
            ("sku", text.clone()),
            ("reviews", list(json!({ "$ref": "#/components/schemas/OldReview" }))),
            ("next", cursor),
        ]),
        "OldReviewId": object(&[("id", text.clone()), ("sku", text.clone())]),
        "Document": { "type": "object" },
        "Problem": object(&[
            ("type", text.clone()),
            ("title", text.clone()),
            ("status", number),
            ("detail", text.clone()),
            ("instance", text),
        ]),
    })
}

/// An object schema. All properties are required: an absent value is `null`.
fn object(properties: &[(&str, Value)]) -> Value {
    let required: Vec<_> = properties.iter().map(|(name, _)| *name).collect();
    let properties: Map<_, _> = properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let there: BTreeSet<_> = schemas.keys().map(|name| format!("#/components/schemas/{name}")).collect();
        assert_eq!(found, there);
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let names: BTreeSet<_> = ENDPOINTS.iter().map(|endpoint| endpoint.operation).collect();
        assert_eq!(names.len(), ENDPOINTS.len());
    }
}
