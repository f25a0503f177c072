//! Checks that what our pages name exists: docs/promises.md says which test shows a promise, and a
//! test that is renamed must not leave it without one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files below a folder that have the extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

/// Returns the texts in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether this is the name of a function with at least that many underscores.
fn is_name(text: &str, underscores: usize) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && text.matches('_').count() >= underscores
}

#[test]
fn what_shows_a_promise_exists() {
    let xtask: String = files(&root().join("xtask/src"), "rs").into_iter().map(read).collect();
    let (mut shown, mut missing) = (0, vec![]);
    let page = read("docs/promises.md");
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise |")) {
        let (promise, shown_by) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        let before = shown;
        let mut rest = shown_by;
        // Names come before a link to the file that has them.
        while let Some((names, link)) = rest.split_once("](") {
            let (file, after) = link.split_once(')').unwrap();
            let source = read(Path::new("docs").join(file));
            for name in code(names).filter(|name| is_name(name, 1)) {
                if !source.contains(&format!("fn {name}(")) && !source.contains(&format!("fn {name}<")) {
                    missing.push(format!("{name} is not in {file}"));
                }
            }
            (shown, rest) = (shown + 1, after);
        }
        for command in code(shown_by).filter_map(|command| command.strip_prefix("cargo xtask ")) {
            let word = command.rsplit(' ').next().unwrap();
            if !xtask.contains(&format!("\"{word}\"")) {
                missing.push(format!("cargo xtask has no {word}"));
            }
            shown += 1;
        }
        if shown == before {
            missing.push(format!("nothing shows it: {promise}"));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(shown > 80, "only {shown} references were found");
}

/// The names of tests are sentences, so a name with three underscores in a page is that of a test.
#[test]
fn tests_that_our_pages_name_exist() {
    let mut known = BTreeSet::new();
    for folder in ["crates", "tests", "examples", "benches", "xtask"] {
        for path in files(&root().join(folder), "rs") {
            for rest in read(path).split("fn ").skip(1) {
                known.insert(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned());
            }
        }
    }

    let pages = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
    let docs = [
        "docs/mutants.md",
        "docs/ordering.md",
        "docs/overload.md",
        "docs/promises.md",
        "docs/traffic.md",
        "docs/trips.md",
    ];
    let (mut named, mut unknown) = (0, vec![]);
    for page in pages.into_iter().chain(docs) {
        // Without blocks of code, whose fences would be taken for backticks.
        let text: String = read(page).split("```").step_by(2).collect();
        for name in code(&text) {
            let start = name.trim_end_matches('*');
            if is_name(start, 3) {
                named += 1;
                // A star stands for the rest of the name.
                let next = known.range(start.to_owned()..).next();
                if !next.is_some_and(|known| known == name || start != name && known.starts_with(start)) {
                    unknown.push(format!("{page}: {name}"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(named > 120, "only {named} names were found");
}

/// Returns the value of `rust-version` in a manifest.
fn rust_version(manifest: &str) -> Option<&str> {
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""))?;
    line.split('"').next()
}

#[test]
fn the_readmes_have_the_rust_versions_of_the_crates() {
    let (workspace, readme) = (read("Cargo.toml"), read("README.md"));
    let mut crates = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let manifest = read(path.join("Cargo.toml"));
        let version = rust_version(&manifest).or_else(|| rust_version(&workspace)).unwrap();
        let row = readme.lines().find(|line| line.starts_with(&format!("| [`{name}`](crates/{name}) |")));
        let row = row.unwrap_or_else(|| panic!("the README has no row for {name}"));
        assert!(row.ends_with(&format!("| {version} |")), "{name} needs Rust {version}: {row}");
        let own = read(path.join("README.md"));
        assert!(own.contains(&format!("Rust {version} or newer.")), "the README of {name} does not say Rust {version}");
        crates += 1;
    }
    assert!(crates >= 5, "only {crates} crates were found");
}
