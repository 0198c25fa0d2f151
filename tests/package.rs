//! What a package of the crate shows to those who have nothing but the package.

use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The value of a field of Cargo.toml.
fn field(manifest: &str, name: &str) -> String {
    let line = manifest.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
}

/// Where the links and the pictures of a page lead.
fn links(page: &str) -> Vec<&str> {
    page.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

/// Links by paths would lead nowhere there, and neither would pictures.
#[test]
fn the_page_needs_nothing_beside_it() {
    let manifest = read("Cargo.toml");
    let (name, included) = (field(&manifest, "readme"), field(&manifest, "include"));
    let name = name.trim_matches('"');
    let folders: Vec<_> = included.split('"').filter_map(|word| word.strip_prefix('/')).collect();
    let is_included = |path: &str| folders.iter().any(|folder| path.split('/').next() == Some(folder));
    assert!(is_included(name), "{name} is not in the package: {folders:?}");
    let page = read(name);
    let dead: Vec<_> = links(&page)
        .into_iter()
        .filter(|link| !link.starts_with("https://") && !link.starts_with('#'))
        .collect();
    assert!(dead.is_empty(), "{name}: {dead:?} lead nowhere without the repository");
    assert!(!page.contains("<img") && !page.contains("<a "), "{name}: links in HTML");
    // It finds what it is to find.
    assert_eq!(links("[a](b.md), ![c](d.svg \"e\")"), ["b.md", "d.svg"]);
    assert!(links(&read("README.md")).iter().any(|link| link.ends_with(".svg")));
}
