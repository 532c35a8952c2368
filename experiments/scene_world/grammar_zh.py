"""The Chinese sentences. Slots are filled by captions.py:

{A} {B} {C}   an object with or without measure word; {A1} with (一只猫), {A0} without (猫); {A!} the bare noun again
{a} {b}       where the clause that tells a polysemous word's meaning may stand
{@A} {@B}     the object's position (左边); relative to the other object it is the same word
{~A} {~B}     what such an object does in a place (静静地卧), without 着
{P} {T}       place (草地上) and time (夜晚): only for scenes that have them
"""

POSITIONS = {
    "left": ("左边", "左边", "左边", "左侧", "左面", "左方"),
    "right": ("右边", "右边", "右边", "右侧", "右面", "右方"),
    "top": ("上面", "上面", "上方", "上边"),
    "bottom": ("下面", "下面", "下方", "下边"),
    "middle": ("中间", "中间", "中央", "正中间"),
}

PLACES = {
    "grass": ("草地上", "草坪上", "草原上"),
    "beach": ("沙滩上", "海滩上", "海边"),
    "desert": ("沙漠里", "沙漠中", "大漠中"),
    "snow": ("雪地里", "雪地上", "雪山下"),
    "city": ("城市里", "街头", "都市中", "大街上"),
    "room": ("房间里", "屋里", "室内"),
    "sea": ("海面上", "大海上", "海上"),
    "forest": ("森林里", "树林里", "林中"),
    "space": ("太空中", "星空中", "宇宙里"),
}
PLACE_NAMES = {"grass": "草地", "beach": "沙滩", "desert": "沙漠", "snow": "雪地", "city": "城市", "room": "房间",
               "sea": "海面", "forest": "森林", "space": "太空", "plain": "白色"}  # fmt: skip

TIMES = {
    "day": ("白天", "阳光下", "大白天"),
    "dusk": ("黄昏", "傍晚", "夕阳下", "日落时分"),
    "night": ("夜晚", "夜里", "月光下", "深夜", "夜色中"),
}

STYLE_BEFORE = {
    "ink": ("水墨画：", "一幅水墨画，", "水墨风格，", "国画："),
    "blueprint": ("蓝图：", "一张蓝图，", "蓝图风格，"),
    "sepia": ("老照片：", "一张老照片，", "怀旧风格，"),
}
STYLE_AFTER = {
    "ink": ("，水墨风格", "，水墨画", "，国画"),
    "blueprint": ("，蓝图风格", "，画成蓝图"),
    "sepia": ("，怀旧风格", "，老照片"),
}

COLOURS = {
    "red": ("红色", "红"), "orange": ("橙色", "橙"), "yellow": ("黄色", "黄"), "green": ("绿色", "绿"),
    "blue": ("蓝色", "蓝"), "purple": ("紫色", "紫"), "pink": ("粉色", "粉红色"), "black": ("黑色", "黑"),
    "white": ("白色", "白"),
}  # fmt: skip

SIZES = {"large": ("大", "巨大的", "很大的", "大大的"), "small": ("小", "小小的", "很小的", "迷你的")}

VERBS = {
    "animal": ("静静地卧", "静静地待", "安静地站", "懒懒地趴"),
    "plant": ("静静地长", "悄悄地长", "孤零零地立"),
    "food": ("静静地放", "整齐地摆", "随意地摆"),
    "thing": ("静静地放", "整齐地摆", "随意地摆"),
    "vehicle": ("静静地停", "稳稳地停", "安静地停"),
    "building": ("静静地立", "稳稳地立", "孤零零地立"),
    "sky": ("静静地挂", "高高地挂", "悠悠地悬"),
    "shape": ("静静地浮", "端正地摆", "孤零零地悬"),
}

# One object in the middle.
MIDDLE = (
    "{A1}{a}", "{A1}{a}", "{A1}{a}", "{A}{a}", "{A0}{a}", "有{A1}{a}", "这里有{A1}{a}", "画面{@A}是{A}{a}",
    "{A}在{@A}{a}", "{@A}有{A1}{a}", "画的是{A}{a}", "{A1}的图片{a}", "请画{A1}{a}", "我看见{A1}{a}",
    "{A1}{~A}着{a}", "{A1}{~A}在{@A}{a}", "只有{A1}，别的什么也没有{a}", "那{A1}{~A}着，多么安静{a}",
    "{T}，{A1}{~A}着{a}", "{T}的{A1}{a}", "{P}的{A1}{a}", "{P}有{A1}{a}", "{A1}在{P}{a}", "{A1}{~A}在{P}{a}",
    "{T}，{A1}{~A}在{P}{a}", "{P}{~A}着{A1}{a}", "{T}的{P}，{~A}着{A1}{a}", "{T}，{P}有{A1}{a}",
)  # fmt: skip

# One object elsewhere.
ASIDE = (
    "{A}在{@A}{a}", "{@A}是{A}{a}", "{@A}有{A1}{a}", "画面{@A}有{A1}{a}", "{A1}{~A}在{@A}{a}", "{@A}{~A}着{A1}{a}",
    "{A}在画面的{@A}{a}", "把{A}画在{@A}{a}", "{@A}的{A0}{a}", "{T}，{A1}{~A}在{@A}{a}", "{P}，{@A}有{A1}{a}",
    "{T}，{@A}{~A}着{A1}{a}", "只见{@A}{A1}{a}", "{A}靠{@A}{a}",
)  # fmt: skip

# Two objects, each with its position: either may be named first.
PAIR = (
    "{@A}是{A}{a}，{@B}是{B}{b}", "{@A}是{A0}{a}，{@B}是{B0}{b}", "{A0}在{@A}{a}，{B0}在{@B}{b}",
    "{A}在{@A}{a}，{B}在{@B}{b}", "{@A}有{A1}{a}，{@B}有{B1}{b}", "{@A}{A0}，{@B}{B0}", "{A}在{B}的{@A}{a}",
    "{B}的{@A}是{A}{a}", "{B}的{@A}有{A1}{a}", "{A1}{~A}在{@A}{a}，{B1}{~B}在{@B}{b}",
    "{@A}{~A}着{A1}{a}，{@B}{~B}着{B1}{b}", "画面{@A}画着{A1}{a}，{@B}画着{B1}{b}",
    "{@A}的{A0}{~A}着，{@B}的{B0}{~B}着", "把{A}放在{@A}，把{B}放在{@B}", "{A1}，{@B}还有{B1}{b}",
    "有{A1}和{B1}，{A!}在{@A}{a}，{B!}在{@B}{b}", "{A1}和{B1}，{A!}在{@A}", "{A}和{B}，{@A}是{A!}",
    "只见{@A}{A1}{a}，{@B}{B1}{b}", "{A}在{@A}{a}，而{B}却在{@B}{b}", "请画{A1}在{@A}，{B1}在{@B}",
    "{@A}那边是{A}{a}，{@B}这边是{B}{b}", "{A}，{@A}；{B}，{@B}",
    "{T}，{A1}{~A}在{@A}{a}，{@B}是{B}{b}", "{P}，{@A}是{A}{a}，{@B}是{B}{b}", "{P}有{A1}和{B1}，{A!}在{@A}",
    "{T}，{@A}{~A}着{A1}{a}，{@B}有{B1}{b}", "{A}位于{@A}{a}，{B}位于{@B}{b}",
)  # fmt: skip

# Two objects in a row without a word of position: the first named stands on the left.
ROW = (
    "{A}和{B}", "{A1}和{B1}", "{A1}与{B1}", "有{A1}和{B1}", "{A1}，{B1}", "{A}旁边是{B}", "{A1}挨着{B1}",
    "{A1}对着{B1}", "从左到右：{A}，{B}", "先是{A}{a}，再是{B}{b}", "{P}有{A1}和{B1}", "{T}，{A1}陪着{B1}",
)  # fmt: skip
COLUMN = ("从上到下：{A}，{B}", "{A}{@B}是{B}{b}", "{B}{@A}是{A}{a}", "{A}压在{B}的{@A}")

THREE = (
    "{A}、{B}和{C}", "{A1}，{B1}，{C1}", "从左到右是{A}、{B}、{C}", "{@A}是{A}，{@B}是{B}，{@C}是{C}",
    "{A}在{@A}，{B}在{@B}，{C}在{@C}", "{@B}是{B}，{@A}是{A}，{@C}是{C}", "{@C}是{C}，{@B}是{B}，{@A}是{A}",
    "有{A1}、{B1}和{C1}", "{@A}有{A1}，{@B}有{B1}，{@C}有{C1}",
)  # fmt: skip

# Never in training.
HELD_OUT = ("{A}位于{@A}{a}，{B}位于{@B}{b}", "{@A}那边是{A}{a}，{@B}这边是{B}{b}", "{A1}对着{B1}",
            "我看见{A1}{a}", "{A}靠{@A}{a}")  # fmt: skip
