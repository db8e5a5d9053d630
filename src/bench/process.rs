//! What the operating system knows of this process: its CPU time and its resident memory. `None` where it does not say.

use std::time::Instant;

use serde::Serialize;

/// CPU time of all threads of this process so far, seconds. Only on Unix.
pub fn cpu_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid place for the answer, and nothing else is touched.
        let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } == 0;
        #[allow(clippy::unnecessary_cast)] // the fields' types differ by platform
        done.then_some(time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64)
    }
    #[cfg(not(unix))]
    None
}

/// One timed piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Milliseconds on the clock on the wall.
    pub wall_ms: f64,
    /// Milliseconds of CPU time, all threads together; null where the system does not say.
    pub cpu_ms: Option<f64>,
}

/// Both clocks, started.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Instant,
    cpu: Option<f64>,
}

impl Clock {
    /// From now.
    pub fn start() -> Self {
        Self { cpu: cpu_seconds(), wall: Instant::now() }
    }

    /// Up to now.
    pub fn sample(&self) -> Sample {
        let wall_ms = self.wall.elapsed().as_secs_f64() * 1e3;
        let cpu_ms = self.cpu.zip(cpu_seconds()).map(|(from, to)| (to - from) * 1e3);
        Sample { wall_ms, cpu_ms }
    }
}

/// Resident memory, bytes. Only on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// At most, since the process began or since [`Memory::reset_peak`].
    pub peak: u64,
}

impl Memory {
    /// As the system sees it.
    pub fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let of = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb * 1024)
        };
        Some(Self { resident: of("VmRSS:")?, peak: of("VmHWM:")? })
    }

    /// Makes the peak begin again from what is in use now; false where the system does not let it.
    pub fn reset_peak() -> bool {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: it takes no pointer; free memory that the allocator holds (of the work before) goes back to the system.
        unsafe {
            libc::malloc_trim(0);
        }
        std::fs::write("/proc/self/clear_refs", "5").is_ok()
    }
}

/// The processor's name, if the system tells it.
pub fn cpu_model() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// What of the instructions that the kernels ask for this processor has.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($name:tt),*) => { $( if is_x86_feature_detected!($name) { found.push($name); } )* };
        }
        look!("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avx512bf16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! look {
            ($($name:tt),*) => { $( if std::arch::is_aarch64_feature_detected!($name) { found.push($name); } )* };
        }
        look!("neon", "dotprod", "bf16", "i8mm");
    }
    // Elsewhere nothing is looked for.
    found.shrink_to_fit();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run() {
        let clock = Clock::start();
        let mut sum = 0f64;
        while clock.sample().wall_ms < 5.0 {
            sum += (sum + 1.0).sqrt();
        }
        let sample = clock.sample();
        assert!(sum > 0.0 && sample.wall_ms >= 5.0);
        if cfg!(unix) {
            // Other tests of this process run meanwhile: no upper bound.
            assert!(sample.cpu_ms.unwrap() > 0.5, "{sample:?}");
        }
    }

    #[test]
    fn memory_that_is_touched_is_counted() {
        let Some(before) = Memory::now() else { return };
        let block = vec![1u8; 64 << 20];
        let after = Memory::now().unwrap();
        assert!(block.iter().map(|&b| u64::from(b)).sum::<u64>() == 64 << 20);
        assert!(before.resident > 0 && after.peak >= after.resident.min(before.resident) && after.peak >= 64 << 20);
    }
}
