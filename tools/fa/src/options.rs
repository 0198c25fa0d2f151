//! The options that a command knows, and what was given for them.

use std::fmt::Write as _;
use std::str::FromStr;

use lexopt::prelude::*;
use measure::did_you_mean;

/// An option that a command knows.
pub struct Known {
    pub name: &'static str,
    /// What its value is, for people; "" if it has none.
    pub value: &'static str,
    pub help: &'static str,
}

/// What was given, each name once.
pub struct Given(Vec<(&'static str, String)>);

impl Given {
    pub fn parse(known: &[Known], args: Vec<String>) -> Result<Given, lexopt::Error> {
        let mut given = Vec::new();
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            let option = match &arg {
                Long(name) => known.iter().find(|option| option.name[2..] == **name),
                _ => None,
            };
            let Some(Known { name, value, .. }) = option else {
                let Long(word) = arg else { return Err(arg.unexpected()) };
                let word = format!("--{word}");
                let meant = did_you_mean(&word, known.iter().map(|option| option.name));
                return Err(format!("there is no option {word:?}{meant}").into());
            };
            if given.iter().any(|(before, _)| before == name) {
                return Err(format!("{name} is given twice").into());
            }
            let value = if value.is_empty() { String::new() } else { parser.value()?.string()? };
            given.push((*name, value));
        }
        Ok(Given(given))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    pub fn number<T: FromStr>(&self, name: &str, otherwise: T) -> Result<T, String> {
        self.text(name).map_or(Ok(otherwise), |value| number(name, value))
    }

    /// Two numbers, `A/B`, or one for both.
    pub fn pair(&self, name: &str, otherwise: [i64; 2]) -> Result<[i64; 2], String> {
        match self.text(name).map(|value| value.split_once('/').unwrap_or((value, value))) {
            None => Ok(otherwise),
            Some((a, b)) => Ok([number(name, a)?, number(name, b)?]),
        }
    }

    /// One of some words, as what stands for it.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], otherwise: T) -> Result<T, String> {
        let Some(value) = self.text(name) else { return Ok(otherwise) };
        let found = words.iter().find(|(word, _)| *word == value);
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let meant = || did_you_mean(value, all.iter().copied());
        let none = || format!("{name} {value:?} is none of {}{}", all.join(", "), meant());
        found.map(|(_, x)| *x).ok_or_else(none)
    }
}

pub fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} {value:?} is no number that fits"))
}

/// One line an option.
pub fn help(known: &[Known]) -> String {
    let width = known.iter().map(|option| option.name.len() + option.value.len() + 1).max().unwrap_or(0);
    let mut out = String::new();
    for Known { name, value, help } in known {
        let _ = writeln!(out, "  {:<width$}  {help}", format!("{name} {value}"));
    }
    out
}
