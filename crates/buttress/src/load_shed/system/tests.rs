use super::*;
use std::{fs, path::PathBuf};
use tokio::time::sleep;

/// A folder with the files of a machine, removed at the end.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let machine = Self(std::env::temp_dir().join(format!("buttress-system-{name}-{}", std::process::id())));
        files.iter().for_each(|(file, text)| machine.write(file, text));
        machine
    }

    fn write(&self, file: &str, text: &str) {
        let file = self.0.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_container_the_numbers_are_those_of_its_limits() {
    const GROUP: &str = "sys/fs/cgroup/pod/app";
    let file = |name: &str| format!("{GROUP}/{name}");
    let machine = Machine::new(
        "container",
        &[
            ("proc/self/cgroup", "4:memory:/other\n0::/pod/app\n"),
            (&file("cpu.stat"), "usage_usec 1000000\n"),
            ("sys/fs/cgroup/pod/cpu.stat", "usage_usec 5000000\n"),
            ("sys/fs/cgroup/pod/cpu.max", "50000 100000\n"),
            (&file("cpu.max"), "max 100000\n"),
            (&file("cpu.pressure"), "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            (&file("memory.current"), "900\n"),
            (&file("memory.max"), "1000\n"),
            (&file("memory.stat"), "anon 100\ninactive_file 400\n"),
        ],
    );
    let system = SystemLoad::reading(&machine.0);
    let (cpu, pressure, memory) = (system.cpu().unwrap(), system.cpu_pressure().unwrap(), system.memory().unwrap());
    assert_eq!((cpu.level(), pressure.level(), memory.level()), (0.0, 0.0, 0.5));
    // The group around it has the limit: half a processor.
    machine.write("sys/fs/cgroup/pod/cpu.stat", "usage_usec 5250000\n");
    machine.write(&file("cpu.pressure"), "some avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n");
    machine.write(&file("memory.current"), "1300\n");
    sleep(PERIOD + Duration::from_millis(1)).await;
    let near = |a: f64, b: f64| (a - b).abs() < 0.01;
    assert!(near(cpu.level(), 0.5) && near(pressure.level(), 0.25), "{} {}", cpu.level(), pressure.level());
    assert_eq!((memory.level(), cpu.name(), memory.name()), (0.9, "cpu", "memory"));
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_memory_is_that_of_the_machine() {
    let machine = Machine::new(
        "machine",
        &[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 0\n"),
            ("sys/fs/cgroup/memory.current", "5\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    250 kB\n"),
        ],
    );
    let system = SystemLoad::reading(&machine.0);
    assert_eq!(system.memory().unwrap().level(), 0.75);
    assert_eq!(system.cpu_pressure().unwrap_err(), Unsupported { monitor: "cpu_pressure" });
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_numbers_says_so_at_construction_and_one_that_loses_them_is_not_overloaded() {
    let empty = Machine::new("empty", &[]);
    let system = SystemLoad::reading(&empty.0);
    let errors = [system.cpu(), system.cpu_pressure(), system.memory()].map(|monitor| monitor.unwrap_err().to_string());
    assert_eq!(errors[0], "no numbers of `cpu` on this machine");
    let machine = Machine::new("lost", &[("proc/meminfo", "MemTotal: 4 kB\nMemAvailable: 0 kB\n")]);
    let memory = SystemLoad::reading(&machine.0).memory().unwrap();
    assert_eq!(memory.level(), 1.0);
    machine.write("proc/meminfo", "nothing of this kind");
    sleep(PERIOD + Duration::from_millis(1)).await;
    assert_eq!(memory.level(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_one_and_a_half_processors_is_not_rounded_to_one() {
    let machine = Machine::new(
        "fraction",
        &[
            ("proc/self/cgroup", "0::/\n"),
            // The standard library rounds the limit down where it counts processors.
            ("proc/self/status", "Name:\tapp\nCpus_allowed:\tff\nCpus_allowed_list:\t0-999,1002\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 0\n"),
            ("sys/fs/cgroup/cpu.max", "90050000 100000\n"),
        ],
    );
    let cpu = SystemLoad::reading(&machine.0).cpu().unwrap();
    machine.write("sys/fs/cgroup/cpu.stat", "usage_usec 450250000\n");
    sleep(PERIOD + Duration::from_millis(1)).await;
    assert!((cpu.level() - 0.5).abs() < 0.01, "{} of 900.5 processors", cpu.level());
}

#[tokio::test(start_paused = true)]
async fn a_number_that_cannot_be_read_for_a_while_goes_on_from_the_last_one() {
    let stat = "sys/fs/cgroup/cpu.stat";
    let files = [("proc/self/cgroup", "0::/\n"), (stat, "usage_usec 0\n"), ("sys/fs/cgroup/cpu.max", "50000 100000\n")];
    let machine = Machine::new("gap", &files);
    let cpu = SystemLoad::reading(&machine.0).cpu().unwrap();
    machine.write(stat, "");
    sleep(PERIOD + Duration::from_millis(1)).await;
    assert_eq!(cpu.level(), 0.0, "a lack of numbers is no overload");
    machine.write(stat, "usage_usec 500000\n");
    sleep(PERIOD).await;
    assert!((cpu.level() - 0.5).abs() < 0.01, "half a second of half a processor in two: {}", cpu.level());
}

#[test]
fn a_monitor_whose_runtime_has_ended_measures_nothing() {
    let machine = Machine::new("ended", &[("proc/meminfo", "MemTotal: 4 kB\nMemAvailable: 0 kB\n")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let memory = runtime.block_on(async { SystemLoad::reading(&machine.0).memory().unwrap() });
    assert_eq!(memory.level(), 1.0);
    drop(runtime);
    assert_eq!(memory.level(), 0.0, "the last number would stay for good");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_monitor() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let machine = Machine::new("task", &[("proc/meminfo", "MemTotal: 4 kB\nMemAvailable: 0 kB\n")]);
    let memory = SystemLoad::reading(&machine.0).memory().unwrap();
    assert_eq!(tasks(), before + 1);
    drop(memory);
    tokio::task::yield_now().await;
    assert_eq!(tasks(), before);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn this_machine_has_numbers_of_the_processor_and_of_memory() {
    let system = SystemLoad::start();
    let memory = system.memory().unwrap().level();
    assert!(memory > 0.0 && memory < 1.0, "{memory}");
    system.cpu().unwrap();
}
