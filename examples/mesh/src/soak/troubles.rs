//! The kinds of trouble.

mod broker;
pub(super) mod clock;
mod customers;
mod database;
mod disk;
mod processes;
mod stranger;

use anyhow::bail;

use super::trouble::Trouble;

/// The names of all troubles.
pub const NAMES: [&str; 15] = [
    "full-disk",
    "database-silent",
    "database-restart",
    "database-down",
    "broker-down",
    "leaders-moved",
    "log-locked",
    "slow-clients",
    "hostile-text",
    "hang-ups",
    "killed",
    "frozen",
    "terminated-twice",
    "clock-jump",
    "stranger",
];

fn create(name: &str) -> Option<Box<dyn Trouble>> {
    Some(match name {
        "full-disk" => Box::new(disk::FullDisk::default()),
        "database-silent" => Box::new(database::Silent),
        "database-restart" => Box::new(database::Restart),
        "database-down" => Box::new(database::Down),
        "broker-down" => Box::new(broker::BrokerDown),
        "leaders-moved" => Box::new(broker::LeadersMoved::default()),
        "log-locked" => Box::new(broker::LogLocked::default()),
        "slow-clients" => Box::new(customers::SlowClients::default()),
        "hostile-text" => Box::new(customers::HostileText),
        "hang-ups" => Box::new(customers::HangUps::default()),
        "killed" => Box::new(processes::Killed),
        "frozen" => Box::new(processes::Frozen::default()),
        "terminated-twice" => Box::new(processes::TerminatedTwice),
        "clock-jump" => Box::new(clock::Jump::default()),
        "stranger" => Box::new(stranger::Stranger),
        _ => return None,
    })
}

/// The troubles with these names, or all of them.
pub(super) fn named(names: &[String]) -> anyhow::Result<Vec<Box<dyn Trouble>>> {
    let mut troubles = Vec::new();
    let all = || NAMES.into_iter().map(str::to_owned).collect();
    for name in if names.is_empty() { all() } else { names.to_vec() } {
        match create(&name) {
            Some(trouble) => troubles.push(trouble),
            None => bail!("no trouble is called {name}; there are {}", NAMES.join(", ")),
        }
    }
    Ok(troubles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_trouble_and_others_are_refused_with_the_list() {
        let troubles = named(&[]).unwrap();
        assert_eq!(troubles.iter().map(|trouble| trouble.name()).collect::<Vec<_>>(), NAMES);
        let refused = named(&["flood".to_owned()]).err().unwrap().to_string();
        assert!(refused.contains("flood") && refused.contains("full-disk"), "{refused}");
    }
}
