"""Short lessons on the shipped model: predict, see, change, question."""

from toushi.dashboards import address
from toushi.dashboards.lessons import lesson_frame
from toushi.dashboards.lessons.lesson_list import LESSONS

lesson = lesson_frame.choose(LESSONS)
address.write()  # with the lesson that was just chosen
lesson_frame.show(lesson)
