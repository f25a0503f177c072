//! Compares the files under deploy/ with the code. Without these tests, a renamed port, path or
//! variable would only fail in a cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use http::StatusCode;
use mesh::admin::Token;
use mesh::launch::{Clients, Name, WIND_DOWN};
use mesh::mesh::{Config, Mesh};
use mesh::probe::probe;
use mesh::token::{self, Tokens};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::{Cli, Command, ServiceArgs};

type Variables = BTreeMap<String, String>;

/// The operators' token, which is not an argument.
const ADMIN_TOKEN: &str = "MESH_ADMIN_TOKEN";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Parses all documents of a file and applies merge keys. A duplicate key is an error.
fn yaml(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text).map(|document| {
        let mut document =
            serde_norway::Value::deserialize(document).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        // A merged mapping may contain merge keys itself.
        let mut before = serde_norway::Value::Null;
        while document != before {
            before = document.clone();
            document.apply_merge().unwrap();
        }
        serde_json::to_value(document).unwrap()
    });
    documents.collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text: quote it"))
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| text(item).to_owned()).collect()
}

fn compose() -> Value {
    yaml(&deploy().join("compose.yaml")).remove(0)
}

/// All Kubernetes objects, by kind and name.
fn objects() -> BTreeMap<(String, String), Value> {
    let mut objects = BTreeMap::new();
    for file in std::fs::read_dir(deploy().join("kubernetes")).unwrap() {
        for object in yaml(&file.unwrap().path()) {
            let name = (text(&object["kind"]).to_owned(), text(&object["metadata"]["name"]).to_owned());
            assert!(object["metadata"].get("namespace").is_none(), "{name:?}: kubectl's -n chooses the namespace");
            assert!(objects.insert(name.clone(), object).is_none(), "{name:?} is there twice");
        }
    }
    objects
}

fn object<'a>(objects: &'a BTreeMap<(String, String), Value>, kind: &str, name: &str) -> &'a Value {
    objects.get(&(kind.to_owned(), name.to_owned())).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Parses these arguments and variables with the program's own parser. Variables are passed as
/// flags, because tests share one environment. This checks both their names and their values.
fn parse(arguments: &[String], variables: &Variables) -> (Name, ServiceArgs) {
    let words = ["mesh".to_owned()].into_iter().chain(arguments.iter().cloned());
    let service = arguments.last().unwrap();
    let command = Cli::command();
    let subcommand = command.find_subcommand(service).unwrap_or_else(|| panic!("there is no `mesh {service}`"));
    let flags = variables
        .iter()
        .filter(|(name, _)| !["RUST_LOG", token::KEY, ADMIN_TOKEN].contains(&name.as_str()))
        .flat_map(|(variable, value)| {
            let known =
                subcommand.get_arguments().find(|arg| arg.get_env().is_some_and(|env| env == variable.as_str()));
            let flag = known.unwrap_or_else(|| panic!("`mesh {service}` has no variable {variable}"));
            let long = format!("--{}", flag.get_long().unwrap());
            match flag.get_action().takes_values() {
                true => vec![long, value.clone()],
                false if value == "true" => vec![long],
                false => Vec::new(),
            }
        });
    let cli = Cli::try_parse_from(words.chain(flags)).unwrap_or_else(|error| panic!("`mesh {service}`: {error}"));
    match cli.command {
        Command::Gateway(args) => (Name::Gateway, args),
        Command::Order(args) => (Name::Order, args),
        Command::Payment(args) => (Name::Payment, args),
        Command::Inventory(args) => (Name::Inventory, args),
        Command::Shipping(args) => (Name::Shipping, args),
        Command::Notification(args) => (Name::Notification, args),
        Command::Legacy(args) => (Name::Legacy, args),
        other => panic!("{other:?} is no service"),
    }
}

/// Checks what must hold for a service in every deployment.
fn check(name: Name, (parsed, args): &(Name, ServiceArgs), patience: Duration) {
    assert_eq!(*parsed, name);
    let listen = args.listen.unwrap();
    assert!(listen.ip().is_unspecified(), "{name:?}: loopback is of no use in a container");
    assert_eq!(listen.port(), name.default_port(), "{name:?}");
    let addresses = args.peers.addresses();
    for peer in Name::ALL {
        let expected = format!("{}:{}", peer.as_str(), peer.default_port());
        assert_eq!(addresses.of(peer).to_string(), expected, "{name:?}");
        let expected = format!("{}:{}", peer.as_str(), peer.default_admin_port());
        assert_eq!(addresses.admin(peer).to_string(), expected, "{name:?}");
    }
    let operators = args.admin.admin_listen.unwrap();
    assert!(operators.ip().is_unspecified() && operators.port() == name.default_admin_port(), "{name:?}");
    assert!(args.drain_delay + args.grace + WIND_DOWN <= patience, "{name:?} is killed before it has ended");
    assert_eq!(args.stores.server.server().unwrap().is_some(), name.has_database(), "{name:?}");
    assert_eq!(args.stores.bus.kafka.is_some(), name.publishes(), "{name:?}");
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.strip_suffix('s').and_then(|seconds| seconds.parse().ok()).unwrap())
}

#[test]
fn compose_runs_every_service_as_the_code_expects_it() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.len(), Name::ALL.len() + 2, "all of ours, PostgreSQL and Kafka");
    for name in Name::ALL {
        let service = &services[name.as_str()];
        let environment = service["environment"].as_object().unwrap();
        let variables: Variables =
            environment.iter().map(|(key, value)| (key.clone(), text(value).to_owned())).collect();
        let parsed = parse(&texts(&service["command"]), &variables);
        check(name, &parsed, seconds(text(&service["stop_grace_period"])));
        assert!(Token::new(&variables[ADMIN_TOKEN]).is_ok(), "{name:?}");
        let probe = texts(&service["healthcheck"]["test"]);
        let asked = ["--listen".to_owned(), variables["MESH_LISTEN"].clone()];
        assert_eq!(probe[0], "CMD");
        let probe = Cli::try_parse_from(probe[1..].iter().cloned().chain(asked)).unwrap();
        assert!(matches!(probe.command, Command::Probe { path, .. } if path == "/readyz"));
        assert_eq!(service["read_only"], true);
        for (other, condition) in service["depends_on"].as_object().unwrap() {
            assert!(
                services[other].get("healthcheck").is_some(),
                "{name:?} waits for {other}, which has no health check"
            );
            assert_eq!(condition["condition"], "service_healthy");
        }
        // The admin endpoints have no authentication: they must be reachable from this machine
        // only.
        let published = service.get("ports").map(texts).unwrap_or_default();
        assert!(published.iter().all(|port| port.starts_with("127.0.0.1:")));
        assert_eq!(published.is_empty(), name != Name::Gateway);
    }
    let file = text(&services["gateway"]["build"]["dockerfile"]);
    assert!(deploy().join(text(&services["gateway"]["build"]["context"])).join(file).is_file());
    let kafka = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].to_string();
    assert!(kafka.contains(text(&services["order"]["environment"]["MESH_KAFKA"])));
}

#[test]
fn kubernetes_runs_every_service_as_the_code_expects_it() {
    let objects = objects();
    assert_eq!(objects.keys().filter(|(kind, _)| kind == "Deployment").count(), Name::ALL.len());
    for name in Name::ALL {
        let deployment = object(&objects, "Deployment", name.as_str());
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mut variables = Variables::new();
        for source in container["envFrom"].as_array().unwrap() {
            let (kind, data, reference) = match source.get("secretRef") {
                Some(reference) => ("Secret", "stringData", reference),
                None => ("ConfigMap", "data", &source["configMapRef"]),
            };
            let source = object(&objects, kind, text(&reference["name"]))[data].as_object().unwrap();
            variables.extend(source.iter().map(|(key, value)| (key.clone(), text(value).to_owned())));
        }
        for variable in container["env"].as_array().unwrap() {
            variables.insert(text(&variable["name"]).to_owned(), text(&variable["value"]).to_owned());
        }
        let parsed = parse(&texts(&container["args"]), &variables);
        let patience = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
        check(name, &parsed, patience);
        assert!(Token::new(&variables[ADMIN_TOKEN]).is_ok(), "{name:?}");
        let operators = parsed.1.admin.admin_listen.map(|addr| addr.port());
        assert!(operators != Some(name.default_port()), "{name:?}: operators have a port of their own");

        let port = u64::from(name.default_port());
        assert_eq!(container["ports"][0]["containerPort"], port);
        for (probe, path) in [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{name:?}");
            assert_eq!(container[probe]["httpGet"]["port"], port, "{name:?}");
        }
        let unready = container["readinessProbe"]["periodSeconds"].as_u64().unwrap();
        assert!(
            parsed.1.drain_delay.as_secs() >= unready,
            "{name:?} closes its listener before the Service has removed it"
        );

        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["enableServiceLinks"], false);
        assert!(container["resources"]["requests"].get("memory").is_some());

        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let service = &object(&objects, "Service", name.as_str())["spec"];
        for (at, port) in [port, u64::from(name.default_admin_port())].into_iter().enumerate() {
            let open = &service["ports"][at];
            assert_eq!((&open["port"], &open["targetPort"]), (&port.into(), &port.into()));
            assert_eq!(container["ports"][at]["containerPort"], port);
        }
        let scraped = &deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"];
        assert_eq!(*scraped, name.default_admin_port().to_string(), "{name:?}: metrics are for operators");
        let budget = &object(&objects, "PodDisruptionBudget", name.as_str())["spec"];
        for selector in
            [&service["selector"], &budget["selector"]["matchLabels"], &deployment["spec"]["selector"]["matchLabels"]]
        {
            for (key, value) in selector.as_object().unwrap() {
                assert_eq!(&labels[key], value, "{name:?}");
            }
        }
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap();
        assert!(replicas > budget["minAvailable"].as_u64().unwrap_or(0), "{name:?}: no node could ever be drained");
    }
}

#[test]
fn the_network_policies_allow_the_calls_that_the_code_makes_and_no_others() {
    let objects = objects();
    let clients = Clients::new(1).unwrap();
    let policy = |name: &str| object(&objects, "NetworkPolicy", name)["spec"].clone();
    let all = policy("mesh");
    assert_eq!((&all["ingress"], &all["policyTypes"]), (&serde_json::json!([]), &serde_json::json!(["Ingress"])));
    for name in Name::ALL {
        let pod = &object(&objects, "Deployment", name.as_str())["spec"]["template"]["metadata"]["labels"];
        for (key, value) in all["podSelector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&pod[key], value, "{name:?} is open to all");
        }
        let calls = |caller: &Name| {
            let suffix = format!("-> {}", name.as_str());
            clients.of(*caller).iter().any(|client| client.name().ends_with(&suffix))
        };
        let callers: Vec<_> = Name::ALL.into_iter().filter(calls).map(Name::as_str).collect();
        let policy = policy(name.as_str());
        assert_eq!(policy["podSelector"]["matchLabels"]["app.kubernetes.io/name"], name.as_str());
        let mut rules = policy["ingress"].as_array().unwrap().iter();
        if name == Name::Gateway || !callers.is_empty() {
            let rule = rules.next().unwrap();
            assert_eq!(rule["ports"], serde_json::json!([{ "port": name.default_port() }]), "{name:?}");
            let mut allowed = pods(rule, "app.kubernetes.io/name");
            allowed.sort_by_key(|allowed| Name::ALL.iter().position(|name| name.as_str() == *allowed));
            assert_eq!(allowed, callers, "{name:?}");
            assert_eq!(
                rule.get("from").is_none(),
                name == Name::Gateway,
                "{name:?}: only the gateway serves customers"
            );
        }
        let operators = rules.next().unwrap();
        assert_eq!(operators["ports"], serde_json::json!([{ "port": name.default_admin_port() }]), "{name:?}");
        match name {
            // All services send their spans there.
            Name::Gateway => assert_eq!(pods(operators, "app.kubernetes.io/part-of"), ["mesh"]),
            _ => assert_eq!(pods(operators, "app.kubernetes.io/name"), ["gateway"], "{name:?}"),
        }
        assert_eq!(rules.next(), None, "{name:?}");
    }
}

/// The pods from which a rule allows connections, by a label.
fn pods<'a>(rule: &'a Value, label: &str) -> Vec<&'a str> {
    let from = rule["from"].as_array().into_iter().flatten();
    from.filter_map(|from| from["podSelector"]["matchLabels"].get(label)).map(text).collect()
}

#[test]
fn data_outlives_its_containers() {
    let compose = compose();
    for (service, folder) in [("postgres", "/var/lib/postgresql/data"), ("kafka", "/var/lib/kafka/data")] {
        assert_eq!(texts(&compose["services"][service]["volumes"]), [format!("{service}:{folder}")]);
        assert!(compose["volumes"].get(service).is_some());
    }
    assert_eq!(compose["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"], "/var/lib/kafka/data");
}

#[test]
fn only_the_gateway_has_the_key_of_customers_tokens() {
    let key = |variables: &Value| Tokens::new(text(&variables[token::KEY]).as_bytes()).is_ok();
    let compose = compose();
    for name in Name::ALL {
        let variables = &compose["services"][name.as_str()]["environment"];
        assert_eq!(variables.get(token::KEY).is_some(), name == Name::Gateway, "{name:?}");
    }
    assert!(key(&compose["services"]["gateway"]["environment"]));
    let objects = objects();
    assert!(key(&object(&objects, "Secret", "mesh-tokens")["stringData"]));
    for name in Name::ALL {
        let containers = &object(&objects, "Deployment", name.as_str())["spec"]["template"]["spec"]["containers"];
        assert_eq!(containers.to_string().contains("mesh-tokens"), name == Name::Gateway, "{name:?}");
    }
}

#[test]
fn no_password_is_in_an_argument_list() {
    let compose = compose();
    let commands = compose["services"].as_object().unwrap().values().filter_map(|service| service.get("command"));
    let pods = objects().into_values().filter(|object| object["kind"] == "Deployment");
    let arguments = pods.map(|pod| pod["spec"]["template"]["spec"]["containers"][0]["args"].clone());
    for list in commands.cloned().chain(arguments) {
        assert!(texts(&list).iter().all(|argument| !argument.contains("://")), "{list}");
    }
}

#[tokio::test]
async fn every_service_answers_the_probes() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::start(Config { drain_delay: Duration::ZERO, ..Config::new(dir.path()) }).await.unwrap();
    for name in Name::ALL {
        for path in ["/startupz", "/livez", "/readyz"] {
            assert_eq!(probe(mesh.addr(name), path).await, Some(StatusCode::OK), "{name:?} {path}");
        }
        // The probe must also report unreadiness: gRPC services answer 200 to any unknown path.
        mesh.health(name).drain();
        assert_eq!(probe(mesh.addr(name), "/readyz").await, Some(StatusCode::SERVICE_UNAVAILABLE), "{name:?}");
    }
    mesh.stop().await;
}

#[test]
fn the_image_holds_the_program_and_is_made_of_what_is_there() {
    let file = std::fs::read_to_string(deploy().join("Dockerfile")).unwrap();
    let instructions =
        |word: &str| file.lines().filter_map(|line| line.strip_prefix(word)).map(str::trim).collect::<Vec<_>>();
    assert_eq!(instructions("ENTRYPOINT"), ["[\"mesh\"]"]);
    assert_eq!(env!("CARGO_PKG_NAME"), "mesh");
    let (built, sources): (Vec<&str>, Vec<&str>) =
        instructions("COPY").into_iter().partition(|copy| copy.starts_with("--from=build"));
    assert_eq!(built, ["--from=build /usr/local/bin/mesh /usr/local/bin/mesh"]);
    let mut copied = Vec::new();
    for copy in sources {
        let mut words: Vec<_> = copy.split_whitespace().collect();
        words.pop();
        for word in words {
            assert!(workspace().join(word).exists(), "{word}");
            copied.push(word);
        }
    }
    // Cargo fails if the manifest of any workspace member is missing.
    let manifest = std::fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        assert!(copied.iter().any(|copied| Path::new(member).starts_with(copied)), "{member}");
    }
    // rdkafka-sys compiles C++, and the slim image has a C compiler only.
    assert!(file.lines().any(|line| line.contains("apt-get install") && line.contains(" g++ ")), "{file}");
    for flag in ["--release", "--locked", "--package mesh", "--no-default-features", "--features kafka", "--bin mesh"] {
        assert!(file.contains(flag), "{flag}");
    }
    // `runAsNonRoot` rejects an image whose user is not a number, or is 0.
    let user = instructions("USER")[0].split(':').next().unwrap().parse::<u32>().unwrap();
    assert!(user > 0);
    #[cfg(feature = "kafka")]
    assert_eq!(instructions("ENV"), [format!("GLIBC_TUNABLES={}", buttress_durable::bus::kafka::GLIBC_TUNABLES)]);
    let rust = instructions("FROM rust:")[0].split('-').next().unwrap();
    assert_eq!(rust, env!("CARGO_PKG_RUST_VERSION"), "the compiler that this package asks for");
    let range = |of: fn(Name) -> u16| [Name::Gateway, Name::Legacy].map(|name| of(name).to_string()).join("-");
    let ports = format!("{} {}", range(Name::default_port), range(Name::default_admin_port));
    assert_eq!(instructions("EXPOSE"), [ports]);
}
