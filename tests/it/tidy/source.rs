//! Rust source files as text: what each defines, what it imports, how long its functions are.
//!
//! It reads formatted code line by line instead of parsing it, which is enough for rules about structure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The root of the repository.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder of the repository whose names end so, as paths from the root, in order.
pub(super) fn files(folder: &str, suffix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(suffix) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The text of a file of the repository.
pub(super) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One file of a crate.
pub(super) struct Source {
    /// From the root of the repository.
    pub(super) path: String,
    /// The modules that lead to it, from the root of its crate.
    pub(super) module: Vec<String>,
    /// Without comments, string contents and test modules.
    pub(super) code: String,
    lines: usize,
}

impl Source {
    /// Reads a file of the crate whose sources are in `folder`.
    pub(super) fn read(folder: &str, path: &str) -> Self {
        let text = read(path);
        let inner = path.strip_prefix(folder).unwrap().trim_start_matches('/').trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        Self {
            path: path.to_owned(),
            module,
            lines: text.lines().count(),
            code: without_tests(&plain(&text)),
        }
    }

    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// The functions and their lines, from the first line of the signature to the closing brace.
    pub(super) fn functions(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        let lines: Vec<&str> = self.code.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let Some(name) = defined(line.trim_start(), &["fn"]) else { continue };
            let indent = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indent}}}");
            // A function without a body ends at a semicolon; one on a single line ends where it begins.
            let length = lines[start..].iter().position(|line| {
                *line == end
                    || line.starts_with(indent)
                        && !line.starts_with(&format!("{indent} "))
                        && line.ends_with(';')
            });
            found.push((name.to_owned(), length.map_or(1, |length| length + 1)));
        }
        found
    }

    /// Whether the file uses a crate of this name, and not a module that is called the same.
    pub(super) fn names_crate(&self, name: &str) -> bool {
        let mut trees = Vec::new();
        for (at, _) in self.code.match_indices("use ") {
            let end = self.code[at..].find(';').map_or(self.code.len(), |end| at + end);
            expand(&self.code[at + 4..end], &[], &mut trees);
        }
        let is_module =
            trees.iter().any(|path| path.len() > 1 && path.iter().skip(1).any(|part| part == name));
        let in_use = trees.iter().any(|path| path[0] == name);
        let inline = self
            .code
            .match_indices(&format!("{name}::"))
            .any(|(at, _)| !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
        in_use || inline && !is_module
    }

    /// Names that the file defines at its top level.
    fn definitions(&self) -> BTreeSet<String> {
        const KINDS: [&str; 9] =
            ["fn", "struct", "enum", "trait", "type", "const", "static", "macro_rules!", "union"];
        let mut names = BTreeSet::new();
        let mut lines = self.code.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(name) = defined(line, &KINDS) {
                names.insert(name.to_owned());
            }
            // An enum of words has its name on the line after the macro's.
            if line.starts_with("string_enum! {") {
                let name = lines.by_ref().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
                names.insert(name.trim_end_matches(" {").to_owned());
            }
        }
        names
    }

    /// Paths of `use` declarations, absolute from the root of the crate, and whether they are `pub`.
    fn uses(&self) -> Vec<(bool, Vec<String>)> {
        let mut found = Vec::new();
        let mut rest = self.code.as_str();
        while let Some(at) = rest.find("use ") {
            let line_start = rest[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let before = rest[line_start..at].trim();
            let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
            if before.is_empty() || before.starts_with("pub") {
                let mut paths = Vec::new();
                expand(&rest[at + 4..end], &[], &mut paths);
                found.extend(
                    paths.into_iter().filter_map(|path| Some((!before.is_empty(), self.absolute(&path)?))),
                );
            }
            rest = &rest[end..];
        }
        found
    }

    /// Paths in the code that begin with `crate::`, `super::`, `self::` or a child module.
    fn paths(&self, children: &BTreeSet<String>) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("::") {
            let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let start = self.code[..at].rfind(|c| !is_word(c)).map_or(0, |start| start + 1);
            let end = self.code[at..].find(|c| !is_word(c)).map_or(self.code.len(), |end| at + end);
            let path: Vec<String> = self.code[start..end].split("::").map(str::to_owned).collect();
            let first = path[0].as_str();
            if ["crate", "super", "self"].contains(&first) || children.contains(first) {
                found.extend(self.absolute(&path).filter(|path| !path.is_empty()));
            }
        }
        found
    }

    /// A path from the root of the crate; `None` where it leads out of it.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut path = path;
        let mut whole = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => {
                let mut parent = self.module.clone();
                parent.pop();
                while path.get(1).is_some_and(|next| next == "super") {
                    parent.pop();
                    path = &path[1..];
                }
                parent
            }
            child => {
                let mut whole = self.module.clone();
                whole.push(child.to_owned());
                whole
            }
        };
        whole.extend(path[1..].iter().cloned());
        Some(whole)
    }
}

/// The sources of one crate and what each file takes from others.
pub(super) struct Crate {
    pub(super) sources: Vec<Source>,
    by_module: BTreeMap<Vec<String>, usize>,
    definitions: Vec<BTreeSet<String>>,
}

impl Crate {
    /// Reads all sources below a folder such as `src`. Files whose names say so hold tests only, and are left out.
    pub(super) fn read(folder: &str) -> Self {
        let is_test = |path: &String| path.ends_with("/tests.rs") || path.contains("/tests/");
        let sources: Vec<Source> = files(folder, ".rs")
            .iter()
            .filter(|path| !is_test(path) && !path.ends_with("/main.rs"))
            .map(|path| Source::read(folder, path))
            .collect();
        let by_module = sources.iter().enumerate().map(|(at, source)| (source.module.clone(), at)).collect();
        let definitions = sources.iter().map(Source::definitions).collect();
        Self { sources, by_module, definitions }
    }

    /// For each file, the other files of the crate from which it takes something.
    pub(super) fn imports(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut all = BTreeMap::new();
        for source in &self.sources {
            let children = self.children(&source.module);
            // What a parent passes on is not what it needs.
            let needed = source.uses().into_iter().filter(|(public, _)| !public).map(|(_, path)| path);
            let exported: BTreeSet<Vec<String>> =
                source.uses().into_iter().filter(|(public, _)| *public).map(|(_, path)| path).collect();
            let named = source
                .paths(&children)
                .into_iter()
                .filter(|path| !exported.iter().any(|e| e.starts_with(path)));
            let targets: BTreeSet<&str> = needed
                .chain(named)
                .filter_map(|path| self.defines(&path, 0))
                .map(|at| self.sources[at].path.as_str())
                .filter(|path| *path != source.path)
                .collect();
            all.insert(source.path.as_str(), targets);
        }
        all
    }

    fn children(&self, module: &[String]) -> BTreeSet<String> {
        let is_child = |other: &&Vec<String>| other.len() == module.len() + 1 && other.starts_with(module);
        self.by_module.keys().filter(is_child).filter_map(|child| child.last().cloned()).collect()
    }

    /// The file that defines what a path names, through any number of re-exports.
    fn defines(&self, path: &[String], depth: usize) -> Option<usize> {
        let known = (0..=path.len()).rev().find(|length| self.by_module.contains_key(&path[..*length]))?;
        let at = self.by_module[&path[..known]];
        let Some(name) = path.get(known) else { return (known > 0).then_some(at) };
        if self.definitions[at].contains(name) || depth > 8 {
            return Some(at);
        }
        let source = &self.sources[at];
        let passed_on =
            source.uses().into_iter().find(|(_, path)| path.last() == Some(name) && path.len() > 1);
        match passed_on {
            Some((_, target)) if target[..] != path[..=known] => self.defines(&target, depth + 1),
            _ => (known > 0).then_some(at),
        }
    }
}

/// The name that a line defines, if it is a definition of one of these kinds.
fn defined<'a>(line: &'a str, kinds: &[&str]) -> Option<&'a str> {
    let mut rest = line;
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(inside) => inside.split_once(") ")?.1,
            None => after.strip_prefix(' ')?,
        };
    }
    for word in ["async ", "const fn ", "unsafe "] {
        if let Some(after) = rest.strip_prefix(word) {
            rest = if word == "const fn " { &rest["const ".len()..] } else { after };
        }
    }
    let kind =
        kinds.iter().find(|kind| rest.strip_prefix(**kind).is_some_and(|after| after.starts_with(' ')))?;
    let name = rest[kind.len() + 1..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (!name.is_empty()).then_some(name)
}

/// Writes the paths of a `use` tree out.
fn expand(tree: &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    if let Some((head, inner)) = tree.split_once('{') {
        let mut path = before.to_vec();
        path.extend(head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
        let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
        let (mut depth, mut start) = (0, 0);
        for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    if !inner[start..at].trim().is_empty() {
                        expand(&inner[start..at], &path, found);
                    }
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let tree = tree.split(" as ").next().unwrap_or(tree);
    let mut path = before.to_vec();
    path.extend(
        tree.split("::").map(str::trim).filter(|part| !part.is_empty() && *part != "self").map(str::to_owned),
    );
    if tree.starts_with("self::") {
        path.insert(0, "self".to_owned());
    }
    found.push(path);
}

/// The code without comments and without what stands in strings.
fn plain(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            'r' if matches!(chars.peek(), Some('"' | '#'))
                && !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') =>
            {
                skip_raw(&mut chars, &mut code);
            }
            '"' => {
                code.push('"');
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        '\n' => code.push('\n'),
                        _ => {}
                    }
                }
                code.push('"');
            }
            // A character, not a lifetime.
            '\'' => {
                let ahead: Vec<char> = chars.clone().take(3).collect();
                let length = match ahead[..] {
                    ['\\', ..] => chars.clone().skip(2).position(|c| c == '\'').map_or(0, |at| at + 3),
                    [_, '\'', ..] => 2,
                    _ => 0,
                };
                for _ in 0..length {
                    chars.next();
                }
                code.push('\'');
            }
            c => code.push(c),
        }
    }
    code
}

fn skip_raw(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, code: &mut String) {
    let mut end = String::from("\"");
    while chars.peek() == Some(&'#') {
        chars.next();
        end.push('#');
    }
    if chars.next() != Some('"') {
        code.push('r');
        return;
    }
    let mut inside = String::new();
    for c in chars.by_ref() {
        inside.push(c);
        if inside.ends_with(&end) {
            break;
        }
    }
    code.push('"');
    code.extend(inside.chars().filter(|c| *c == '\n'));
    code.push('"');
}

/// Cuts test modules out, which formatted code ends with a brace in the first column.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]\n") {
        kept.push_str(&rest[..at]);
        let item = &rest[at..];
        let end = match (item.find("\n}\n"), item.find(";\n")) {
            (Some(brace), Some(semicolon)) if semicolon < item.find('{').unwrap_or(usize::MAX) => {
                semicolon.min(brace) + 2
            }
            (Some(brace), _) => brace + 3,
            (None, Some(semicolon)) => semicolon + 2,
            (None, None) => item.len(),
        };
        rest = &item[end.min(item.len())..];
    }
    kept.push_str(rest);
    kept
}
