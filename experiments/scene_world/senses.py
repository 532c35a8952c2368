"""Words with two meanings. The picture depends on the context, which stands before the word or after it.

`before` phrases go in front of the noun (河边的银行), `after` clauses follow it (银行在左边，河水缓缓流过).
The first sense of a word is what it means without any context.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sense:
    """`word` of `language` means `kind`; the contexts that say so."""

    word: str
    language: str
    kind: str
    measure: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.word}/{self.kind}"


def _zh(word: str, kind: str, measure: str, before: str, after: str) -> Sense:
    return Sense(word, "zh", kind, measure, tuple(x + "的" for x in before.split()), tuple(after.split()))


def _en(word: str, kind: str, before: str, after: str) -> Sense:
    return Sense(word, "en", kind, "", tuple(before.split(", ")), tuple(after.split(", ")))


_ALL = (
    _zh("银行", "bank", "家", "存钱 取款 金融街 发工资 办贷款 有保安",
        "人们排队取钱 里面存着许多钱 柜员正在数钱 利率又涨了 金库里堆满钞票"),
    _zh("银行", "riverbank", "段", "河边 江边 流水旁 长满芦苇 泥泞 湿润",
        "河水缓缓流过 岸边长满青草 流水拍打着它 渔夫在那里垂钓 芦苇随风摇摆"),
    _zh("苹果", "apple", "个", "香甜 刚摘 多汁 树上结 清脆 洗干净",
        "咬一口又脆又甜 刚从树上摘下来 可以榨成果汁 果皮带着露水 削了皮就能吃"),
    _zh("苹果", "phone", "部", "新发布 能打电话 屏幕发光 最新款 充着电 智能",
        "屏幕亮了起来 正在充电 铃声响个不停 拍照很清晰 刚装了新系统"),
    _zh("杜鹃", "azalea", "朵", "盛开 含苞 芬芳 花瓣娇嫩 沾着露珠 山坡上开",
        "开得正艳 花瓣沾着露珠 散发着花香 引来了蜜蜂 在枝头绽放"),
    _zh("杜鹃", "bird", "只", "会飞 唱歌 啼叫 展翅 筑巢 长羽毛",
        "一声声地啼叫 张开了翅膀 唱起了歌 准备飞走 正在梳理羽毛"),
    _zh("光盘", "disc", "张", "刻好 播放音乐 存着电影 装软件 能读数据 录歌",
        "里面存着电影 放进光驱就能播放 录满了歌曲 数据还能读出来 正在电脑里转动"),
    _zh("光盘", "clean_plate", "个", "吃完饭 饭后 一粒不剩 不浪费粮食 餐桌上 吃干净",
        "饭菜全吃完了 一粒米也没剩 大家不浪费粮食 晚饭吃得真干净 厨师看了很高兴"),
    _zh("宝马", "car", "辆", "加满油 四个轮子 停在车库 发动机轰鸣 司机开 新上牌",
        "发动机轰轰作响 司机踩下油门 车灯亮着 轮胎刚换过 刚加满了油"),
    _zh("宝马", "horse", "匹", "奔跑 日行千里 嘶鸣 将军骑 吃草 鬃毛飘扬",
        "扬起四蹄 长嘶一声 低头吃着草 驮着将军 鬃毛随风飘扬"),
    _zh("粉丝", "noodles", "碗", "煮熟 热腾腾 拌好 碗里 加辣椒 锅里炖",
        "冒着热气 拌上了酱油 吃起来很滑 刚从锅里捞出来 配上一双筷子"),
    _zh("粉丝", "fans", "群", "追星 欢呼 举着灯牌 热情 等签名 演唱会上",
        "大声喊着偶像的名字 等着明星签名 挥舞着荧光棒 为歌手欢呼 买了演唱会的票"),
    _zh("龙头", "tap", "个", "滴水 拧紧 厨房 漏水 生锈 水管上",
        "水哗哗地流 正在滴水 被人拧开了 刚接好水管 一拧就出水"),
    _zh("龙头", "dragon_head", "个", "舞龙 喷火 神龙 长着角 威武 传说中",
        "张口喷出火焰 胡须飘动 头上长着角 鳞片闪闪发光 像要飞上云霄"),
    _zh("黄牛", "ox", "头", "耕田 吃草 拉车 老实 长着角 犁地",
        "低头吃着草 正在耕田 哞哞地叫 甩着尾巴 拉着一架犁"),
    _zh("黄牛", "scalper", "个", "倒票 卖票 加价 车站前 抢票 鬼鬼祟祟",
        "高价倒卖门票 兜售演唱会的票 悄悄问人要不要票 害怕警察 手里攥着车票"),
    _zh("木马", "carousel", "匹", "旋转 游乐园 孩子骑 会转圈 木头做 雕花",
        "随着音乐转圈 孩子骑在上面 前后摇晃着 漆着漂亮的花纹 在游乐园里最受欢迎"),
    _zh("木马", "virus", "个", "入侵电脑 窃取密码 网络上 黑客写 杀毒软件发现 感染文件",
        "悄悄入侵了电脑 偷走了密码 被杀毒软件发现 感染了许多文件 是黑客写的程序"),
    _zh("芒果", "mango", "个", "香甜 熟透 刚摘 切开 多汁 热带",
        "汁水很甜 刚从树上摘下 果肉又软又香 可以做果汁 剥了皮就能吃"),
    _zh("芒果", "television", "台", "播节目 演综艺 放电视剧 看直播 换频道 卫视",
        "正在播放综艺 播着电视剧 晚会就要直播 换了一个频道 主持人在说话"),
    _zh("甲壳虫", "beetle", "只", "爬行 六条腿 花园里 背着硬壳 会飞 叶子上",
        "慢慢地爬 张开翅膀飞走 啃着树叶 触角动了动 背上有硬壳"),
    _zh("甲壳虫", "guitar", "支", "唱摇滚 弹奏 演出 录唱片 舞台上 组乐队",
        "唱着摇滚 正在舞台演出 弹起了和弦 发行了新唱片 歌迷跟着唱"),
    _zh("凤凰", "phoenix", "只", "浴火 神话里 展翅 涅槃 传说中 长尾",
        "在火中重生 张开了双翅 百鸟都来朝拜 拖着长长的尾羽 飞向天空"),
    _zh("凤凰", "bicycle", "辆", "骑着上班 两个轮子 老式 掉了链条 打足气 修车铺",
        "骑着它去上班 车铃叮当响 链条刚上了油 轮胎打足了气 脚踏板转得飞快"),
    _en("bat", "bat", "flying, furry, winged, sleeping, cave, nocturnal",
        "flapping its wings, that hangs upside down, hunting insects, with sharp fangs, squeaking softly"),
    _en("bat", "baseball_bat", "wooden, baseball, batter's, polished, cricket, heavy",
        "for hitting the ball, held by a batter, with a leather grip, made of wood, that scored a home run"),
    _en("mouse", "mouse", "squeaking, furry, hungry, grey, tiny-eared, timid",
        "nibbling on cheese, with a long tail, that fears the cat, sniffing with its nose, hiding in a hole"),
    _en("mouse", "computer_mouse", "wireless, optical, computer, USB, gaming, clicking",
        "with two buttons, plugged into a laptop, for clicking icons, that moves the cursor, with a scroll wheel"),
    _en("bank", "bank", "savings, investment, lending, city-council, wealthy, commercial",
        "full of money, that gives loans, where people save cash, with a vault, with an interest rate"),
    _en("bank", "riverbank", "river, muddy, reedy, stream-side, damp, flooded",
        "where the river flows, with reeds growing, where people fish, washed by the stream, beside the water"),
    _en("apple", "apple", "juicy, sweet, ripe, crunchy, fresh-picked, tasty",
        "picked from a branch, good to eat, full of juice, with a sweet taste, ready to bake in a pie"),
    _en("apple", "phone", "touch-screen, charging, ringing, brand-new, smart, wireless",
        "with a touch screen, that takes photos, running apps, ringing loudly, with a full battery"),
    _en("bow", "ribbon", "silk, hair, gift, tied, satin, pretty",
        "tied with silk, for her hair, on top of a present, made of ribbon, with two loops"),
    _en("bow", "archery_bow", "hunting, archer's, drawn, curved, war, long-range",
        "ready to shoot, with an arrow, held by an archer, with a tight string, for hunting deer"),
)  # fmt: skip

SENSES: dict[str, Sense] = {sense.name: sense for sense in _ALL}
DEFAULT: dict[str, str] = {}
for _sense in _ALL:
    DEFAULT.setdefault(_sense.word, _sense.name)
BY_KIND: dict[tuple[str, str], Sense] = {(s.language, s.kind): s for s in _ALL}
