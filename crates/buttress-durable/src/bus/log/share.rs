//! How the members of a group share the partitions of a topic.

use super::store::PARTITIONS;
use crate::hash::bucket;

/// Returns the number of partitions of a topic for a member, among the live members of its group
/// (ordered by id, with their topics separated by spaces).
///
/// Only the members with that topic share it. The numbers of all of them add up to all partitions,
/// so that none is left over. Who gets one more than others differs by topic, so that a member does
/// not get one more of every topic.
pub(super) fn share(members: &[(String, String)], me: &str, topic: &str) -> usize {
    // A member that has not registered yet is not in the list, and one of an older version has not
    // registered its topics.
    let has = |topics: &str| topics.is_empty() || topics.split(' ').any(|one| one == topic);
    let mut sharing: Vec<&str> = members.iter().filter(|(_, topics)| has(topics)).map(|(id, _)| id.as_str()).collect();
    if !sharing.contains(&me) {
        sharing.push(me);
        sharing.sort_unstable();
    }
    let (count, partitions) = (sharing.len(), usize::from(PARTITIONS));
    let mine = sharing.iter().position(|id| *id == me).unwrap_or(0);
    let first = usize::try_from(bucket(topic, u16::try_from(count).unwrap_or(u16::MAX))).unwrap_or(0);
    let turn = (mine + count - first % count) % count;
    partitions / count + usize::from(turn < partitions % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(topics: &[&str]) -> Vec<(String, String)> {
        topics.iter().enumerate().map(|(n, topics)| (format!("m{n:02}"), (*topics).to_owned())).collect()
    }

    fn shares(members: &[(String, String)], topic: &str) -> Vec<usize> {
        let has = |topics: &str| topics.is_empty() || topics.split(' ').any(|one| one == topic);
        members.iter().filter(|(_, topics)| has(topics)).map(|(id, _)| share(members, id, topic)).collect()
    }

    #[test]
    fn every_partition_has_one_member_and_shares_differ_by_one_at_most() {
        for count in 1..30 {
            let members = members(&vec!["X Y Z"; count]);
            for topic in ["X", "Y", "Z"] {
                let shares = shares(&members, topic);
                assert_eq!(shares.iter().sum::<usize>(), 8, "{count} members");
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
            }
        }
    }

    #[test]
    fn a_topic_is_shared_among_the_members_that_have_it() {
        let members = members(&["X", "X Y", "XX", ""]);
        assert_eq!(shares(&members, "X").iter().sum::<usize>(), 8);
        assert_eq!(shares(&members, "Y"), [4, 4], "an older version has not registered its topics");
        assert_eq!(share(&[], "me", "X"), 8, "a member that is not listed yet");
    }

    #[test]
    fn one_member_does_not_get_one_more_of_every_topic() {
        let members = members(&vec!["A B C D E"; 16]);
        let total = |me: &str| ["A", "B", "C", "D", "E"].map(|topic| share(&members, me, topic)).iter().sum::<usize>();
        assert!(members.iter().all(|(id, _)| total(id) <= 4), "of 40 partitions on 16 members");
    }
}
