//! A civil date and time, and Python's `strftime` of it in the C locale.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A date and time of day in the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Year.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// The time of the system's clock, in UTC.
    pub fn now_utc() -> Self {
        // A clock before 1970 counts as 1970.
        Self::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64))
    }

    /// The UTC date and time `seconds` after the beginning of 1970.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
        // The guess, by the longest or the shortest year, is never late.
        while days_before_year(year + 1) <= days {
            year += 1;
        }
        let mut day = days - days_before_year(year);
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        Self { year, month, day: day as u8 + 1, hour: hour as u8, minute: minute as u8, second: second as u8 }
    }

    /// The time in the words of `format`, where `%Y %m %d %H %M %S %y %e %j %I %p %B %b %h %A %a %w %F %T %D %%` stand
    /// for its parts, with `-` after the `%` to leave out padding.
    ///
    /// # Errors
    /// The directive that is none of these.
    pub fn strftime(&self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let padded = directive != Some('-');
            if !padded {
                directive = chars.next();
            }
            let part = directive.and_then(|letter| self.part(letter, padded));
            let spelt = || format!("%{}{}", if padded { "" } else { "-" }, directive.map_or("".into(), String::from));
            out.push_str(&part.ok_or_else(spelt)?);
        }
        Ok(out)
    }

    fn part(&self, letter: char, padded: bool) -> Option<String> {
        let number = |value: i64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
        let month = MONTHS.get(usize::from(self.month.saturating_sub(1))).copied().unwrap_or("");
        let day = DAYS[self.weekday()];
        Some(match letter {
            'Y' => self.year.to_string(),
            'y' => number(self.year.rem_euclid(100), 2),
            'm' => number(self.month.into(), 2),
            'd' => number(self.day.into(), 2),
            'e' if padded => format!("{:2}", self.day),
            'e' => self.day.to_string(),
            'H' => number(self.hour.into(), 2),
            'I' => number((i64::from(self.hour) + 11) % 12 + 1, 2),
            'M' => number(self.minute.into(), 2),
            'S' => number(self.second.into(), 2),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'j' => number(self.days() - days_before_year(self.year) + 1, 3),
            'B' => month.to_owned(),
            'b' | 'h' => month.chars().take(3).collect(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'w' => self.weekday().to_string(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year.rem_euclid(100)),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// Days since the beginning of 1970.
    fn days(&self) -> i64 {
        let months: i64 = (1..self.month).map(|month| days_in_month(self.year, month)).sum();
        days_before_year(self.year) + months + i64::from(self.day) - 1
    }

    fn weekday(&self) -> usize {
        // 1 January 1970 was a Thursday.
        (self.days() + 4).rem_euclid(7) as usize
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from the beginning of 1970 to that of `year`.
fn days_before_year(year: i64) -> i64 {
    let last = year - 1;
    365 * (year - 1970) + (last.div_euclid(4) - last.div_euclid(100) + last.div_euclid(400)) - 477
}

fn days_in_month(year: i64, month: u8) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_times_become_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu 001"),
            (951_782_399, "2000-02-28 23:59:59 Mon 059"),
            (951_782_400, "2000-02-29 00:00:00 Tue 060"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue 366"),
            (1_735_689_600, "2025-01-01 00:00:00 Wed 001"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon 060"),
            (-1, "1969-12-31 23:59:59 Wed 365"),
        ] {
            assert_eq!(DateTime::from_unix(seconds).strftime("%F %T %a %j").unwrap(), expected, "{seconds}");
        }
    }

    #[test]
    fn hours_of_a_half_day_run_from_twelve_to_eleven() {
        let at = |hour| DateTime { year: 2024, month: 7, day: 6, hour, minute: 5, second: 3 };
        assert_eq!(at(0).strftime("%I %p").unwrap(), "12 AM");
        assert_eq!(at(12).strftime("%I %p").unwrap(), "12 PM");
        assert_eq!(at(23).strftime("%-I%p %-M %D %w").unwrap(), "11PM 5 07/06/24 6");
    }

    #[test]
    fn an_unknown_directive_is_named() {
        let now = DateTime::now_utc();
        assert_eq!(now.strftime("%d %Q"), Err("%Q".to_owned()));
        assert_eq!(now.strftime("%"), Err("%".to_owned()));
        assert_eq!(now.strftime("%-"), Err("%-".to_owned()));
    }
}
