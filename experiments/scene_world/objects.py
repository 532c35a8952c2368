"""What the world is made of: every kind of thing, its names in both languages, its picture.

Many Chinese names share characters on purpose (马 河马 斑马 马桶, 鱼 鲸鱼 章鱼 鳄鱼): a model that reads
characters instead of words gets them wrong, and that is what the world is for.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of object. `zh` and `en` start with the usual name; `measure` is the Chinese classifier.

    `icon` names the sprite; several kinds may share one. `alone` is False for kinds that are only ever
    named by a polysemous word (see senses.py)."""

    name: str
    zh: tuple[str, ...]
    en: tuple[str, ...]
    measure: str
    group: str  # animal | plant | food | thing | vehicle | building | sky | shape
    icon: str
    colourable: bool = False
    alone: bool = True

    def names(self, language: str) -> tuple[str, ...]:
        return self.zh if language == "zh" else self.en


def _kind(row: str) -> Kind:
    name, zh, en, measure, group, icon, *flags = row.split("|")
    flags = flags[0] if flags else ""
    return Kind(name, tuple(zh.split("/")), tuple(en.split("/")), measure, group, icon, "c" in flags, "p" not in flags)


# name|中文|English|classifier|group|icon|flags (c: may be recoloured, p: only by a polysemous word)
_TABLE = """
cat|猫/猫咪|cat|只|animal|cat-face|c
dog|狗|dog|只|animal|dog-face
horse|马|horse|匹|animal|horse
hippo|河马|hippo|头|animal|hippopotamus
zebra|斑马|zebra|匹|animal|zebra
cow|牛/奶牛|cow|头|animal|cow
snail|蜗牛|snail|只|animal|snail
rhino|犀牛|rhino|头|animal|rhinoceros
dragon|龙|dragon|条|animal|dragon
dinosaur|恐龙|dinosaur|只|animal|sauropod
lobster|龙虾|lobster|只|animal|lobster
mouse|老鼠|mouse|只|animal|mouse
squirrel|松鼠|squirrel|只|animal|chipmunk
owl|猫头鹰|owl|只|animal|owl
panda|熊猫|panda|只|animal|panda
bear|熊|bear|只|animal|bear
koala|树袋熊/考拉|koala|只|animal|koala
fish|鱼|fish|条|animal|fish|c
whale|鲸鱼/鲸|whale|头|animal|spouting-whale
octopus|章鱼|octopus|只|animal|octopus
crocodile|鳄鱼|crocodile|条|animal|crocodile
rooster|鸡/公鸡|rooster|只|animal|rooster
turkey|火鸡|turkey|只|animal|turkey
bird|鸟|bird|只|animal|bird|c
penguin|企鹅|penguin|只|animal|penguin
lion|狮子|lion|头|animal|lion
tiger|老虎|tiger|只|animal|tiger
elephant|大象|elephant|头|animal|elephant
rabbit|兔子|rabbit|只|animal|rabbit-face
frog|青蛙|frog|只|animal|frog
duck|鸭子|duck|只|animal|duck
butterfly|蝴蝶|butterfly|只|animal|butterfly
tree|树|tree|棵|plant|deciduous-tree
cactus|仙人掌|cactus|棵|plant|cactus
sunflower|向日葵|sunflower|朵|plant|sunflower
flower|花/郁金香|flower/tulip|朵|plant|tulip|c
hot_dog|热狗|hot dog|个|food|hot-dog
bread|面包|loaf of bread|块|food|bread
watermelon|西瓜|watermelon|块|food|watermelon
cucumber|黄瓜|cucumber|根|food|cucumber
pumpkin|南瓜|pumpkin|个|food|jack-o-lantern
peanut|花生|peanut|颗|food|peanuts
mooncake|月饼|mooncake|块|food|moon-cake
banana|香蕉|banana|根|food|banana
cake|蛋糕|cake|块|food|birthday-cake
toilet|马桶|toilet|个|thing|toilet
computer_mouse|鼠标|computer mouse|个|thing|computer-mouse
umbrella|伞/雨伞|umbrella|把|thing|umbrella|c
sunglasses|太阳镜/墨镜|pair of sunglasses|副|thing|sunglasses
hat|帽子|hat|顶|thing|top-hat|c
book|书|book|本|thing|closed-book|c
shirt|衣服/T恤|shirt/T-shirt|件|thing|t-shirt|c
key|钥匙|key|把|thing|key
clock|闹钟|alarm clock/clock|个|thing|alarm-clock
crown|王冠|crown|顶|thing|crown
lantern|灯笼|lantern|盏|thing|red-paper-lantern
balloon|气球|balloon|个|thing|balloon|c
teapot|茶壶|teapot|把|thing|teapot|c
chair|椅子|chair|把|thing|chair
fire|火/火焰|fire|团|thing|fire
car|汽车/轿车|car|辆|vehicle|automobile|c
van|面包车|van|辆|vehicle|minibus
train|火车|train|列|vehicle|locomotive
rocket|火箭|rocket|枚|vehicle|rocket
airplane|飞机|airplane/plane|架|vehicle|airplane
bicycle|自行车/单车|bicycle/bike|辆|vehicle|bicycle
sailboat|帆船|sailboat|艘|vehicle|sailboat
house|房子|house|座|building|house
castle|城堡|castle|座|building|castle
moon|月亮|moon|轮|sky|crescent-moon
sun|太阳|sun|轮|sky|sun
cloud|云|cloud|朵|sky|cloud
circle|圆/圆形|circle|个|shape|shape-circle|c
square|方块/正方形|square|个|shape|shape-square|c
triangle|三角形/三角|triangle|个|shape|shape-triangle|c
star|星星/五角星|star|颗|shape|shape-star|c
heart|爱心/心形|heart|颗|shape|shape-heart|c
diamond|菱形|diamond|个|shape|shape-diamond|c
bank|银行|bank building|家|building|bank|p
riverbank|河岸|river bank/riverside|段|building|riverbank|p
apple|苹果|apple|个|food|red-apple
phone|手机|phone/mobile phone|部|thing|mobile-phone
azalea|杜鹃花|azalea/azalea flower|朵|plant|hibiscus
disc|碟片|compact disc/disc|张|thing|optical-disk|p
clean_plate|空盘子|empty plate|个|thing|fork-and-knife-with-plate|p
noodles|面条|bowl of noodles|碗|food|spaghetti
fans|歌迷|crowd of fans|群|thing|busts-in-silhouette|p
tap|水龙头|tap/water tap|个|thing|tap
dragon_head|龙的脑袋|dragon head|个|animal|dragon-face|p
ox|公牛|ox|头|animal|ox|p
scalper|票贩子|ticket scalper|个|thing|detective|p
carousel|旋转木马|carousel horse|匹|thing|carousel-horse|p
virus|病毒|virus|个|thing|microbe
mango|芒果|mango|个|food|mango
television|电视/电视机|television/TV|台|thing|television
beetle|瓢虫|ladybug|只|animal|lady-beetle
guitar|吉他|guitar|把|thing|guitar
phoenix|火凤凰|phoenix|只|animal|phoenix-bird|p
bat|蝙蝠|bat|只|animal|bat|p
baseball_bat|球棒|baseball bat|根|thing|cricket-game|p
ribbon|蝴蝶结|ribbon bow|个|thing|ribbon|p
archery_bow|弓箭|bow and arrow|把|thing|bow-and-arrow|p
"""

KINDS: dict[str, Kind] = {kind.name: kind for kind in map(_kind, _TABLE.strip().splitlines())}

PLAIN = tuple(k.name for k in KINDS.values() if k.alone and k.group != "shape")
SHAPES = tuple(k.name for k in KINDS.values() if k.group == "shape")
COLOURABLE = tuple(k.name for k in KINDS.values() if k.colourable)

# The colour an object has when none is said is the icon's own; shapes have no such colour and always say it.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 44, 52), "orange": (248, 138, 28), "yellow": (250, 212, 40), "green": (40, 168, 70),
    "blue": (40, 106, 230), "purple": (134, 64, 190), "pink": (250, 134, 186), "black": (44, 44, 52),
    "white": (250, 250, 250),
}  # fmt: skip
