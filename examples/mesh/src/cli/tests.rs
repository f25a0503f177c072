use clap::CommandFactory;
use mesh::bus::Bus;
use mesh::db::{Databases, Files};
use mesh::launch::Name;
use mesh::telemetry::Collector;

use super::values::share;
use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn the_defaults_fit_together() {
    let Command::Order(args) = Cli::parse_from(["mesh", "order"]).command else { panic!("not the order service") };
    let addresses = args.peers.addresses();
    for name in Name::ALL {
        assert!(addresses.of(name).to_string().ends_with(&format!(":{}", name.default_port())), "{name:?}");
        let admin = addresses.admin(name).to_string();
        assert_eq!(admin, format!("127.0.0.1:{}", name.default_admin_port()), "{name:?}");
    }
}

fn service(args: &[&str]) -> ServiceArgs {
    match Cli::parse_from(["mesh", "order"].iter().chain(args)).command {
        Command::Order(args) => args,
        other => panic!("{other:?}"),
    }
}

/// Deployments set these variables.
#[test]
fn every_variable_belongs_to_the_flag_of_its_name() {
    let command = Cli::command();
    let variables = |name: &str| -> Vec<String> {
        let arguments = command.find_subcommand(name).unwrap().get_arguments();
        let pairs = arguments.filter_map(|arg| {
            let (flag, variable) = (arg.get_long()?, arg.get_env()?.to_str()?);
            Some(format!("{flag} {variable}"))
        });
        pairs.collect()
    };
    let pair = |name: &str| format!("{name} MESH_{}", name.to_uppercase().replace('-', "_"));
    let peers = Name::ALL.iter().flat_map(|name| [pair(name.as_str()), pair(&format!("{}-admin", name.as_str()))]);
    let others = [
        "listen MESH_LISTEN",
        "data-dir MESH_DATA_DIR",
        "postgres MESH_POSTGRES",
        "database-prefix MESH_DATABASE_PREFIX",
        "kafka MESH_KAFKA",
        "drain-delay MESH_DRAIN_DELAY",
        "grace MESH_GRACE",
        "orders-per-second-per-customer MESH_ORDERS_PER_SECOND_PER_CUSTOMER",
        "admin-listen MESH_ADMIN_LISTEN",
        "admin-token-file MESH_ADMIN_TOKEN_FILE",
        "trust-traceparent MESH_TRUST_TRACEPARENT",
        "otlp MESH_OTLP",
        "trace-sample MESH_TRACE_SAMPLE",
        "seed MESH_SEED",
        "token-key-file MESH_TOKEN_KEY_FILE",
    ];
    let sorted = |mut pairs: Vec<String>| {
        pairs.sort();
        pairs
    };
    let expected = sorted(peers.chain(others.map(str::to_owned)).collect());
    for name in Name::ALL {
        assert_eq!(sorted(variables(name.as_str())), expected, "{name:?}");
    }
    assert_eq!(variables("probe"), ["listen MESH_LISTEN"]);
}

#[test]
fn every_flag_of_a_service_is_its_own() {
    let defaults = service(&[]);
    let second = Duration::from_secs(1);
    assert_eq!((defaults.drain_delay, defaults.grace, defaults.seed), (second, 10 * second, 1));
    assert!(defaults.admin.admin_listen.is_none() && !defaults.traces.trust_traceparent && !defaults.with_parent);
    assert!(defaults.listen.is_none() && matches!(defaults.stores.bus().unwrap(), Bus::Log));
    assert_eq!(defaults.stores.data_dir, PathBuf::from("mesh-data"));
    assert_eq!(defaults.stores.server.database_prefix, "mesh_");
    let set = service(&[
        "--drain-delay",
        "2.5",
        "--grace",
        "7",
        "--seed",
        "9",
        "--admin-listen",
        "127.0.0.1:2",
        "--admin-token-file",
        "t",
        "--trust-traceparent",
        "--listen",
        "0.0.0.0:1",
        "--data-dir",
        "d",
        "--kafka",
        "k:1",
        "--postgres",
        "postgres://p",
        "--database-prefix",
        "x_",
        "--with-parent",
    ]);
    assert_eq!((set.drain_delay, set.grace, set.seed), (Duration::from_millis(2_500), 7 * second, 9));
    assert!(set.traces.trust_traceparent && set.with_parent);
    assert_eq!(set.admin.admin_listen, "127.0.0.1:2".parse().ok());
    assert_eq!(set.admin.token.admin_token_file, Some(PathBuf::from("t")));
    assert_eq!((set.listen, &set.stores.data_dir), ("0.0.0.0:1".parse().ok(), &PathBuf::from("d")));
    let StoreArgs { server, bus, .. } = set.stores;
    assert_eq!((bus.kafka.as_deref(), server.postgres.as_deref()), (Some("k:1"), Some("postgres://p")));
    assert_eq!(server.database_prefix, "x_");
}

#[test]
fn every_peer_is_reached_at_its_own_address() {
    let flags: Vec<_> = Name::ALL
        .iter()
        .flat_map(|name| {
            let name = name.as_str();
            let (service, admin) = (format!("{name}.test:1"), format!("{name}.test:2"));
            [format!("--{name}"), service, format!("--{name}-admin"), admin]
        })
        .collect();
    let args = service(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let addresses = args.peers.addresses();
    for name in Name::ALL {
        assert_eq!(addresses.of(name).to_string(), format!("{}.test:1", name.as_str()));
        assert_eq!(addresses.admin(name).to_string(), format!("{}.test:2", name.as_str()));
    }
}

#[test]
fn spans_go_to_the_collector_and_to_the_page() {
    let config = |args: &[&str], page: Option<&str>| {
        let config = service(args).traces.config(page.map(Collector::new)).unwrap();
        (config.collectors.into_iter().map(|collector| collector.url).collect::<Vec<_>>(), config.sample)
    };
    assert_eq!(config(&[], None), (vec![], 1.0));
    let (both, share) = config(&["--otlp", "http://c:4317", "--trace-sample", "0.25"], Some("http://page"));
    assert_eq!((both, share), (vec!["http://c:4317".to_owned(), "http://page".to_owned()], 0.25));
}

#[test]
fn numbers_have_bounds_that_are_allowed_themselves() {
    assert_eq!((seconds("0"), seconds("3600")), (Ok(Duration::ZERO), Ok(Duration::from_secs(3_600))));
    assert!(seconds("-0.1").is_err() && seconds("3600.1").is_err() && seconds("soon").is_err());
    assert!(seconds("NaN").is_err() && seconds("inf").is_err());
    assert_eq!((share("0"), share("1"), share("0.5")), (Ok(0.0), Ok(1.0), Ok(0.5)));
    assert!(share("-0.1").is_err() && share("1.1").is_err() && share("NaN").is_err());
    assert_eq!((rate("0.1"), rate("10000")), (Ok(0.1), Ok(10_000.0)));
    assert!(rate("0.09").is_err() && rate("10000.1").is_err() && rate("0").is_err() && rate("NaN").is_err());
    assert_eq!(path("/livez?a=b").as_deref(), Ok("/livez?a=b"));
    assert!(path("livez").is_err() && path("/a b").is_err() && path("").is_err());
}

#[test]
fn a_token_comes_from_a_file_or_the_environment_and_not_from_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "0123456789abcdef\n").unwrap();
    let set = service(&["--admin-token-file", path.to_str().unwrap()]).admin.token;
    assert!(set.token_or(None).unwrap().is_some());
    let both = set.token_or(Some("fedcba9876543210".to_owned())).unwrap_err().to_string();
    assert!(both.starts_with("admin-token-file: "), "{both}");
    let unset = service(&[]).admin.token;
    assert!(unset.token_or(None).unwrap().is_none());
    assert!(unset.token_or(Some("fedcba9876543210".to_owned())).unwrap().is_some());
    assert!(unset.token_or(Some("short".to_owned())).is_err());
}

#[test]
fn only_services_log_as_services() {
    let of = |args: &[&str]| Cli::parse_from(["mesh"].iter().chain(args)).command.is_service();
    for name in Name::ALL {
        assert!(of(&[name.as_str()]), "{name:?}");
    }
    let probe = ["probe", "--listen", "127.0.0.1:1"];
    for other in [&["up"][..], &["demo"], &["load"], &["audit"], &["token", "alice"], &probe] {
        assert!(!of(other), "{other:?}");
    }
}

#[test]
fn the_demo_and_the_probe_have_defaults() {
    let Command::Demo(demo) = Cli::parse_from(["mesh", "demo"]).command else { panic!("no demo") };
    assert_eq!((demo.orders.get(), demo.seed, demo.rate, demo.kills), (500, 42, 20.0, 21));
    assert!(!demo.processes && demo.json.is_none() && demo.data_dir.is_none());
    let set = ["mesh", "demo", "--orders", "7", "--seed", "8", "--rate", "9", "--processes", "--kills", "10"];
    let Command::Demo(demo) = Cli::parse_from(set).command else { panic!("no demo") };
    assert_eq!((demo.orders.get(), demo.seed, demo.rate, demo.kills, demo.processes), (7, 8, 9.0, 10, true));
    assert!(Cli::try_parse_from(["mesh", "demo", "--orders", "0"]).is_err());
    let Command::Up(up) = Cli::parse_from(["mesh", "up"]).command else { panic!("not up") };
    assert_eq!((up.port, up.drain_delay, up.stores.data_dir), (0, Duration::from_secs(1), PathBuf::from("mesh-data")));
    let probe = Cli::parse_from(["mesh", "probe", "--listen", "127.0.0.1:1"]).command;
    assert!(matches!(probe, Command::Probe { path, .. } if path == "/readyz"));
}

#[test]
fn databases_are_files_unless_a_server_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    let stores = service(&["--data-dir", new.to_str().unwrap()]).stores;
    assert!(stores.existing().unwrap_err().to_string().starts_with("data-dir: "));
    let files = stores.databases().unwrap();
    assert!(matches!(files, Databases::Files(Files(path)) if path == new && path.is_dir()));
    assert!(stores.existing().is_ok());
    let other = dir.path().join("other");
    let stores = service(&["--postgres", "postgres://p", "--data-dir", other.to_str().unwrap()]).stores;
    assert!(matches!(stores.databases().unwrap(), Databases::Server(_)) && !other.exists());
    assert!(matches!(service(&[]).stores.bus().unwrap(), Bus::Log));
}
