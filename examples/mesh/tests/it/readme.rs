use std::fs;
use std::path::{Path, PathBuf};

/// Reads every source of the mesh, including tests.
fn sources(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "proto") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

fn defines(source: &str, name: &str) -> bool {
    let words = source.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let words: Vec<_> = words.collect();
    let before = ["fn", "struct", "enum", "trait", "const", "type", "for"];
    words.windows(2).any(|pair| pair[1] == name && before.contains(&pair[0]))
}

#[test]
fn the_tables_name_what_there_is() {
    let mesh = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = vec![];
    ["src", "tests", "proto"].iter().for_each(|directory| sources(&mesh.join(directory), &mut all));
    let readme = fs::read_to_string(mesh.join("README.md")).unwrap();
    let tables = readme.split_once("## Where is what").unwrap().1;

    let mut named = 0;
    for row in tables.lines().filter(|line| line.starts_with("| ")) {
        let mut file = None;
        for code in row.split('`').skip(1).step_by(2) {
            if code.ends_with(".rs") || code.ends_with(".proto") {
                // Of several files with that name, the outermost: the others are named with their
                // folder.
                let named = all.iter().filter(|(path, _)| path.ends_with(code));
                let found = named.min_by_key(|(path, _)| path.components().count());
                file = Some(&found.unwrap_or_else(|| panic!("no file {code}\n{row}")).1);
            } else if code.chars().all(|c| c.is_alphanumeric() || c == '_') {
                let found = match file {
                    Some(source) => defines(source, code),
                    None => all.iter().any(|(_, source)| defines(source, code)),
                };
                assert!(found, "no {code} there\n{row}");
                named += 1;
            }
        }
    }
    assert!(named > 40, "only {named} names were found");
}
