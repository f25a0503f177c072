use super::{
    breaker::CircuitBreaker,
    builder::Builder,
    event::Event,
    window::{Counting, Resize},
};
use crate::{Clock, InvalidConfig};

impl<C: Clock> CircuitBreaker<C> {
    /// Replaces the settings of a live circuit.
    ///
    /// State and results stay, and the new rules are evaluated at once: a circuit whose results
    /// meet them trips, and a half-open circuit with enough successes closes. (A result that
    /// arrives on another thread meanwhile may be judged by the old rules; the next one is not.) A
    /// time window of another length starts empty. The name, the clock, the seed and the custom
    /// rule are not replaced.
    ///
    /// All other settings are replaced: one that `builder` does not set returns to its default. To
    /// change one of several, make the whole builder again.
    ///
    /// # Errors
    /// If a value is out of its range, or the new settings change what is fixed in a live circuit:
    /// whether it has a window, the kind of the window, the number of results of a count window,
    /// whether it counts overdue calls, and the slow threshold if it does. The old settings stay.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::new("payments");
    /// let settings = CircuitBreaker::<ManualClock>::builder("payments").failure_rate(0.3);
    /// breaker.reload(&settings)?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn reload(&self, builder: &Builder<C>) -> Result<(), InvalidConfig> {
        let config = builder.settings.parse()?;
        let (circuit, now) = (&*self.circuit, self.clock.now());
        let judged_anew = circuit.change(now, |machine, now, steps| {
            let resize = Counting::resize(circuit.window.as_ref(), config.window);
            if let Resize::Impossible = resize {
                return Err(InvalidConfig::new(
                    "window",
                    "cannot change its kind, or the number of results of a count window, on a live circuit",
                ));
            }
            let threshold = config.slow_threshold.map(super::nanos);
            let counts_overdue = circuit.overdue.is_some();
            if counts_overdue != config.count_overdue || (counts_overdue && circuit.rules.slow_threshold() != threshold)
            {
                return Err(InvalidConfig::new(
                    "count_overdue",
                    "cannot change on a live circuit, and neither can the slow_threshold while it is on",
                ));
            }
            let changed = circuit.rules.set(&config);
            circuit.rules_changed();
            if let Resize::Time(window, time) = resize {
                steps.push(machine.renew());
                window.resize(time, circuit.nanos(now));
            }
            machine.reload(config.recovery, now, steps);
            Ok(changed)
        })?;
        if judged_anew {
            circuit.judge(now);
        }
        circuit.listeners.emit(&Event::Reloaded);
        Ok(())
    }
}
